/* plot.c - draws a figure: data file, template and style in a folder of their own, gnuplot run
 * there
 *
 * gnuplot is started with fork and exec, arguments one by one, in a temporary folder whose file
 * names are ours; the only text that reaches its command line from outside is the subtitle, inside
 * single quotes, where gnuplot substitutes nothing. */
#include "plots/plot.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/file.h"
#include "embed.h"

static const struct {
    const char *name, *text;
} templates[] = {
#define X(name) {#name, embed_plots_##name##_gp},
    PLOT_FIGURES(X)
#undef X
};

static const char *const format_names[] = {
#define X(e, name) [e] = name,
    PLOT_FORMATS(X)
#undef X
};

const char *plot_style(void) { return embed_plots_style_gp; }

const char *plot_template(const char *figure) {
    for (size_t i = 0; i < sizeof templates / sizeof *templates; i++)
        if (strcmp(templates[i].name, figure) == 0) return templates[i].text;
    return NULL;
}

bool plot_format_of(const char *path, enum plot_format *format, struct err *err) {
    const char *dot = strrchr(file_name(path), '.');
    for (size_t i = 0; dot && i < sizeof format_names / sizeof *format_names; i++) {
        if (strcmp(dot + 1, format_names[i]) != 0) continue;
        *format = (enum plot_format)i;
        return true;
    }
    return err_set(err, ERR_USAGE, "%s: found ending \"%s\", expected .svg, .png or .pdf", path,
                   dot ? dot : "");
}

/* ---- the data file */

static void put_text(struct str *out, const char *text) {
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        char safe = c == '"' ? '\'' : c < 0x20 || c == 0x7f ? ' ' : (char)c;
        str_append(out, &safe, 1);
    }
}

static void put_cell(struct str *out, const struct table *table, int64_t row, int column) {
    if (table_is_null(table, row, column)) return;
    switch (table_column(table, column)->kind) {
    case TABLE_TEXT:
        put_text(out, table_cell(table, row, column));
        break;
    case TABLE_INT:
        str_printf(out, "%.0f", table_number(table, row, column));
        break;
    case TABLE_REAL: {
        double value = table_number(table, row, column);
        if (isfinite(value)) str_printf(out, "%.9g", value);
        break;
    }
    }
}

bool plot_data(const struct table *const *blocks, int count, struct str *out, struct err *err) {
    for (int b = 0; b < count; b++) {
        const struct table *table = blocks[b];
        int columns = table_columns(table);
        if (b) str_puts(out, "\n\n");
        for (int c = 0; c < columns; c++) {
            if (c) str_puts(out, "\t");
            put_text(out, table_column(table, c)->name);
        }
        str_puts(out, "\n");
        for (int64_t row = 0; row < table_rows(table); row++) {
            for (int c = 0; c < columns; c++) {
                if (c) str_puts(out, "\t");
                put_cell(out, table, row, c);
            }
            str_puts(out, "\n");
        }
    }
    return out->failed ? err_memory(err, "figure data") : true;
}

/* ---- the run */

static const char *const work_files[] = {"data.tsv", "figure.gp", "style.gp", "image", "messages"};

static bool write_in(const char *folder, const char *name, const char *text, struct err *err) {
    struct str path = {0};
    file_join(&path, folder, name);
    bool ok =
        path.failed ? err_memory(err, "path") : file_write(path.data, text, strlen(text), err);
    str_free(&path);
    return ok;
}

/* Appends what is in folder/name, nothing when it is not there. */
static void read_in(const char *folder, const char *name, struct str *out) {
    struct str path = {0};
    file_join(&path, folder, name);
    FILE *stream = path.failed ? NULL : fopen(path.data, "rb");
    str_free(&path);
    if (!stream) return;
    char piece[16384];
    for (size_t n; (n = fread(piece, 1, sizeof piece, stream)) > 0;) str_append(out, piece, n);
    fclose(stream);
}

static void remove_folder(const char *folder) {
    for (size_t i = 0; i < sizeof work_files / sizeof *work_files; i++) {
        struct str path = {0};
        file_join(&path, folder, work_files[i]);
        if (!path.failed) unlink(path.data);
        str_free(&path);
    }
    rmdir(folder);
}

/* `settings` <- gnuplot assignments. In single quotes only the quote itself needs care (doubled).
 */
static void put_settings(const struct plot_job *job, struct str *settings) {
    str_printf(settings, "data='data.tsv'; out='image'; format='%s'; subtitle='",
               format_names[job->format]);
    for (const char *c = job->subtitle; *c; c++) {
        char safe = (unsigned char)*c < 0x20 ? ' ' : *c;
        str_append(settings, &safe, 1);
        if (safe == '\'') str_append(settings, &safe, 1);
    }
    str_puts(settings, "'");
    if (job->height) str_printf(settings, "; height=%d", job->height);
}

/* In the child: never returns. Reports errno through the pipe when gnuplot cannot be started. */
static void run_child(const char *folder, const char *settings, int report) {
    /* the same bytes for every user, place and day */
    static const char *const environment[] = {"LC_ALL=C.UTF-8", "SOURCE_DATE_EPOCH=0",
                                              "GNUPLOT_LIB=", "GNUTERM=svg"};
    const char *argv[] = {"gnuplot", "-d", "-e", settings, "figure.gp", NULL};
    int messages = -1;
    int empty = open("/dev/null", O_RDWR);
    bool ready = chdir(folder) == 0 && empty >= 0 &&
                 (messages = open("messages", O_WRONLY | O_CREAT | O_TRUNC, 0600)) >= 0 &&
                 dup2(empty, 0) >= 0 && dup2(empty, 1) >= 0 && dup2(messages, 2) >= 0;
    for (size_t i = 0; i < sizeof environment / sizeof *environment; i++)
        putenv((char *)(uintptr_t)environment[i]);
    if (ready) execvp(argv[0], (char *const *)(uintptr_t)argv);
    int cause = errno;
    ssize_t written = write(report, &cause, sizeof cause);
    _exit(written == (ssize_t)sizeof cause ? 126 : 127);
}

/* Runs gnuplot in the folder; *status as waitpid says. */
static bool run_gnuplot(const char *folder, const char *settings, int *status, struct err *err) {
    int report[2];
    if (pipe2(report, O_CLOEXEC) != 0) return err_errno(err, "gnuplot", "cannot make a pipe");
    pid_t child = fork();
    if (child == 0) run_child(folder, settings, report[1]);
    close(report[1]);
    int cause = 0;
    bool failed = child > 0 && read(report[0], &cause, sizeof cause) == (ssize_t)sizeof cause;
    close(report[0]);
    if (child < 0) return err_errno(err, "gnuplot", "cannot start a process");
    while (waitpid(child, status, 0) < 0)
        if (errno != EINTR) return err_errno(err, "gnuplot", "cannot wait for it");
    if (!failed) return true;
    return err_set(err, ERR_UNSUPPORTED,
                   "gnuplot: found %s, expected the program in PATH (Debian: gnuplot-nox)",
                   strerror(cause));
}

/* The first line of gnuplot's messages that says something, into err. */
static bool gnuplot_failed(const struct plot_job *job, int status, struct str *messages,
                           struct err *err) {
    const char *text = str_text(messages);
    const char *line = NULL;
    for (const char *at = text; *at;) {
        size_t length = strcspn(at, "\n");
        if (length > strspn(at, " ^\t") && !line) line = at;
        const char *colon = strstr(at, "line ");
        if (colon && colon < at + length) line = at;
        at += length + (at[length] == '\n');
    }
    return err_set(err, ERR_DATA, "figure %s: gnuplot: found %s %d, expected an image: %.*s",
                   job->figure, WIFSIGNALED(status) ? "signal" : "exit status",
                   WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status),
                   line ? (int)strcspn(line, "\n") : 10, line ? line : "no message");
}

/* What gnuplot writes into an SVG about itself: its version, and tooltips that say nothing. */
static void clean_svg(const char *figure, const char *svg, struct str *out) {
    static const char *const cuts[][2] = {{"<desc>", "</desc>"},
                                          {"<title>gnuplot_plot_", "</title>"}};
    static const char title[] = "<title>Gnuplot</title>";
    while (*svg) {
        const char *after = NULL;
        for (size_t i = 0; !after && i < sizeof cuts / sizeof *cuts; i++) {
            if (strncmp(svg, cuts[i][0], strlen(cuts[i][0])) != 0) continue;
            after = strstr(svg, cuts[i][1]);
            if (after) after += strlen(cuts[i][1]);
        }
        if (!after && strncmp(svg, title, sizeof title - 1) == 0) {
            str_printf(out, "<title>%s</title>", figure);
            after = svg + sizeof title - 1;
        }
        if (!after) str_append(out, svg, 1);
        svg = after ? after : svg + 1;
    }
}

/* Takes the image that gnuplot left in the folder. */
static void take_image(const struct plot_job *job, const char *folder, struct str *image) {
    struct str raw = {0};
    read_in(folder, "image", &raw);
    if (job->format == PLOT_SVG)
        clean_svg(job->figure, str_text(&raw), image);
    else
        str_append(image, str_text(&raw), raw.len);
    image->failed |= raw.failed;
    str_free(&raw);
}

bool plot_render(const struct plot_job *job, struct str *image, struct err *err) {
    const char *template = plot_template(job->figure);
    if (!template) return err_set(err, ERR_USAGE, "found no figure \"%s\"", job->figure);
    const char *parent = getenv("TMPDIR");
    struct str folder = {0}, settings = {0}, messages = {0};
    file_join(&folder, parent && *parent ? parent : "/tmp", "steelyard-plot-XXXXXX");
    put_settings(job, &settings);
    int status = 0;
    bool made = false;
    bool ok = !folder.failed && !settings.failed ? true : err_memory(err, "figure");
    if (ok) ok = made = mkdtemp(folder.data) || err_errno(err, folder.data, "cannot make a folder");
    size_t before = image->len;
    ok = ok && write_in(folder.data, "data.tsv", job->data, err) &&
         write_in(folder.data, "figure.gp", template, err) &&
         write_in(folder.data, "style.gp", plot_style(), err) &&
         run_gnuplot(folder.data, settings.data, &status, err);
    if (ok) {
        take_image(job, folder.data, image);
        read_in(folder.data, "messages", &messages);
        if (status != 0 || image->len == before)
            ok = gnuplot_failed(job, status, &messages, err);
        else if (image->failed)
            ok = err_memory(err, "image");
    }
    if (made) remove_folder(folder.data);
    str_free(&folder);
    str_free(&settings);
    str_free(&messages);
    return ok;
}
