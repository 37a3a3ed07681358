/* report.h - one self-contained HTML page: template, style and script inside, figures inline as SVG
 *
 * Layer 2: calls base only. A page is assembled as text: each function appends one part to a body,
 * report_page puts it into the template (plots/report.html, .css, .js). Every text that is given is
 * escaped, so names from a trace are shown, never interpreted. Nothing refers to the network. */
#ifndef PLOTS_REPORT_H
#define PLOTS_REPORT_H

#include <stdbool.h>

#include "base/err.h"
#include "base/str.h"
#include "base/table.h"

/* Escaped for HTML text and attributes; control characters become blanks, bytes that are no UTF-8
 * the replacement character. */
void report_escape(struct str *html, const char *text);

/* <section> with a heading and an anchor; closed by report_section_end. */
void report_section(struct str *html, const char *id, const char *heading);
void report_section_end(struct str *html);

void report_paragraph(struct str *html, const char *text);
/* A paragraph that a reader must not miss. */
void report_note(struct str *html, const char *text);
/* Numbered list. */
void report_list(struct str *html, const char *const *items, int count);
/* Rows of a two-column table as name: value. */
void report_facts(struct str *html, const struct table *table);
/* A table that sorts by a click on a column's head. Reals with 4 significant digits; the exact
 * value is in the cell's title. */
void report_table(struct str *html, const char *caption, const struct table *table);

/* A figure: heading (the question it answers), caption (what it shows here), image. svg is the text
 * of an SVG file; its ids get `name` as prefix, so that figures cannot disturb each other. `files`
 * tells where the figure's own files lie, "" for nowhere. */
struct report_figure {
    const char *name;
    const char *question;
    const char *title;
    const char *caption;
    const char *svg;
    bool files; /* name.svg, name.tsv, name.gp lie beside the page */
};
void report_figure(struct str *html, const struct report_figure *figure);

/* out <- the whole page. */
bool report_page(const char *title, const struct str *body, struct str *out, struct err *err);

#endif
