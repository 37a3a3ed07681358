/* report.c - one self-contained HTML page: template, style and script inside, figures inline as SVG
 */
#include "plots/report.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "embed.h"

/* ---- text */

/* Bytes of the UTF-8 character at s, 0 when it is none. */
static size_t utf8_length(const unsigned char *s) {
    static const struct {
        unsigned char mask, lead;
    } forms[] = {{0x80, 0x00}, {0xe0, 0xc0}, {0xf0, 0xe0}, {0xf8, 0xf0}};
    for (size_t n = 0; n < 4; n++) {
        if ((s[0] & forms[n].mask) != forms[n].lead) continue;
        for (size_t i = 1; i <= n; i++)
            if ((s[i] & 0xc0) != 0x80) return 0;
        bool overlong = (n == 1 && s[0] < 0xc2) || (n == 2 && s[0] == 0xe0 && s[1] < 0xa0) ||
                        (n == 3 && s[0] == 0xf0 && s[1] < 0x90);
        bool outside = (n == 2 && s[0] == 0xed && s[1] > 0x9f) || (n == 3 && s[0] > 0xf3);
        return overlong || outside ? 0 : n + 1;
    }
    return 0;
}

static const char *entity(char c) {
    switch (c) {
    case '&':
        return "&amp;";
    case '<':
        return "&lt;";
    case '>':
        return "&gt;";
    case '"':
        return "&quot;";
    case '\'':
        return "&#39;";
    default:
        return (unsigned char)c < 0x20 || c == 0x7f ? " " : NULL;
    }
}

void report_escape(struct str *html, const char *text) {
    for (size_t n = 1; *text; text += n) {
        n = utf8_length((const unsigned char *)text);
        const char *replaced = n == 0 ? "\xef\xbf\xbd" : n == 1 ? entity(*text) : NULL;
        if (replaced)
            str_puts(html, replaced);
        else
            str_append(html, text, n);
        if (n == 0) n = 1;
    }
}

/* <tag>text</tag>, the text escaped. */
static void element(struct str *html, const char *open, const char *text, const char *close) {
    str_puts(html, open);
    report_escape(html, text);
    str_puts(html, close);
}

void report_section(struct str *html, const char *id, const char *heading) {
    element(html, "<section id=\"", id, "\">\n");
    element(html, "<h2>", heading, "</h2>\n");
}

void report_section_end(struct str *html) { str_puts(html, "</section>\n"); }

void report_paragraph(struct str *html, const char *text) { element(html, "<p>", text, "</p>\n"); }

void report_note(struct str *html, const char *text) {
    element(html, "<p class=\"note\" role=\"note\">", text, "</p>\n");
}

void report_list(struct str *html, const char *const *items, int count) {
    str_puts(html, "<ol>\n");
    for (int i = 0; i < count; i++) element(html, "<li>", items[i], "</li>\n");
    str_puts(html, "</ol>\n");
}

/* ---- tables */

static void put_value(struct str *html, const struct table *table, int64_t row, int column,
                      int digits) {
    switch (table_column(table, column)->kind) {
    case TABLE_TEXT:
        report_escape(html, table_cell(table, row, column));
        break;
    case TABLE_INT:
        str_printf(html, "%.0f", table_number(table, row, column));
        break;
    case TABLE_REAL: {
        double value = table_number(table, row, column);
        if (fabs(value) >= 1e4 && fabs(value) < 1e15 && digits < 6)
            str_printf(html, "%.0f", value);
        else
            str_printf(html, "%.*g", digits, value);
        break;
    }
    }
}

void report_facts(struct str *html, const struct table *table) {
    str_puts(html, "<dl>\n");
    for (int64_t row = 0; row < table_rows(table); row++) {
        str_puts(html, "<div><dt>");
        if (!table_is_null(table, row, 0)) put_value(html, table, row, 0, 6);
        str_puts(html, "</dt><dd>");
        if (!table_is_null(table, row, 1)) put_value(html, table, row, 1, 6);
        str_puts(html, "</dd></div>\n");
    }
    str_puts(html, "</dl>\n");
}

static void put_head(struct str *html, const struct table *table) {
    str_puts(html, "<thead><tr>");
    for (int c = 0; c < table_columns(table); c++) {
        const struct table_column *column = table_column(table, c);
        str_printf(html, "<th scope=\"col\"%s><button type=\"button\">",
                   column->kind == TABLE_TEXT ? "" : " class=\"number\"");
        report_escape(html, column->name);
        if (*column->unit) element(html, " <small>", column->unit, "</small>");
        str_puts(html, "</button></th>");
    }
    str_puts(html, "</tr></thead>\n");
}

void report_table(struct str *html, const char *caption, const struct table *table) {
    str_puts(html, "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"");
    report_escape(html, caption);
    element(html, "\"><table class=\"sortable\">\n<caption>", caption, "</caption>\n");
    put_head(html, table);
    str_puts(html, "<tbody>\n");
    for (int64_t row = 0; row < table_rows(table); row++) {
        str_puts(html, "<tr>");
        for (int c = 0; c < table_columns(table); c++) {
            bool text = table_column(table, c)->kind == TABLE_TEXT;
            if (table_is_null(table, row, c)) {
                str_puts(html, text ? "<td></td>" : "<td class=\"number\"></td>");
                continue;
            }
            str_puts(html, text ? "<td>" : "<td class=\"number\"");
            if (!text) {
                str_puts(html, " data-value=\"");
                put_value(html, table, row, c, 17);
                str_puts(html, "\">");
            }
            put_value(html, table, row, c, 4);
            str_puts(html, "</td>");
        }
        str_puts(html, "</tr>\n");
    }
    str_puts(html, "</tbody></table></div>\n");
}

/* ---- figures */

/* Copies SVG text, putting `name-` in front of every id and of every reference to one. */
static void put_svg_body(struct str *html, const char *svg, const char *name) {
    static const char *const marks[] = {" id=\"",  " id='", "href=\"#",
                                        "href='#", "url(#", "url('#"};
    while (*svg) {
        size_t length = 0;
        for (size_t i = 0; !length && i < sizeof marks / sizeof *marks; i++)
            if (strncmp(svg, marks[i], strlen(marks[i])) == 0) length = strlen(marks[i]);
        str_append(html, svg, length ? length : 1);
        if (length) str_printf(html, "%s-", name);
        svg += length ? length : 1;
    }
}

static void put_svg(struct str *html, const struct report_figure *figure) {
    const char *start = strstr(figure->svg, "<svg");
    if (!start) return;
    str_puts(html, "<svg role=\"img\" aria-label=\"");
    report_escape(html, figure->title);
    str_puts(html, ": ");
    report_escape(html, figure->caption);
    str_puts(html, "\"");
    put_svg_body(html, start + strlen("<svg"), figure->name);
}

void report_figure(struct str *html, const struct report_figure *figure) {
    element(html, "<figure id=\"", figure->name, "\">\n");
    element(html, "<h3>", figure->question, "</h3>\n<div class=\"card\">");
    put_svg(html, figure);
    element(html, "</div>\n<figcaption>", figure->caption, "");
    if (figure->files) {
        static const char *const kinds[][2] = {
            {"svg", "figure"}, {"tsv", "data"}, {"gp", "template"}};
        str_puts(html, " <span class=\"files\">");
        for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
            str_printf(html, "%s<a href=\"%s.%s\">%s</a>", i ? " " : "", figure->name, kinds[i][0],
                       kinds[i][1]);
        str_puts(html, "</span>");
    }
    str_puts(html, "</figcaption>\n</figure>\n");
}

/* ---- the page */

bool report_page(const char *title, const struct str *body, struct str *out, struct err *err) {
    struct str escaped = {0};
    report_escape(&escaped, title);
    const struct {
        const char *mark, *text;
    } parts[] = {{"{{title}}", str_text(&escaped)},
                 {"{{style}}", embed_plots_report_css},
                 {"{{script}}", embed_plots_report_js},
                 {"{{body}}", str_text(body)}};
    for (const char *at = embed_plots_report_html; *at;) {
        size_t length = 0;
        for (size_t i = 0; !length && i < sizeof parts / sizeof *parts; i++) {
            if (strncmp(at, parts[i].mark, strlen(parts[i].mark)) != 0) continue;
            str_puts(out, parts[i].text);
            length = strlen(parts[i].mark);
        }
        if (!length) str_append(out, at, length = 1);
        at += length;
    }
    bool ok = !escaped.failed && !body->failed && !out->failed;
    str_free(&escaped);
    return ok ? true : err_memory(err, "report");
}
