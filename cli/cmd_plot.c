/* cmd_plot.c - steelyard plot: one figure of a replay, as SVG, PNG or PDF */
#include <stdio.h>

#include <string.h>

#include "base/file.h"
#include "cli/commands.h"
#include "cli/studies.h"
#include "plots/plot.h"

/* Draws the study of all databases into `path`, and its data file when asked. */
static bool draw(const struct study *study, const struct subject *subjects, int count,
                 const char *path, const char *data_path, struct err *err) {
    struct figure figure = {0};
    struct str image = {0}, data = {0};
    enum plot_format format;
    bool ok = plot_format_of(path, &format, err) && study->draw(subjects, count, &figure, err);
    if (ok && figure.lacks.len > 0)
        ok = err_set(err, ERR_DATA, "%s: figure %s: %s", subjects[0].path, study->name,
                     str_text(&figure.lacks));
    ok = ok && study_render(study, &figure, format, &image, &data, err) &&
         file_write(path, image.data, image.len, err) &&
         (!data_path || file_write(data_path, str_text(&data), data.len, err));
    if (ok) printf("%s\n%s\n", path, str_text(&figure.caption));
    figure_free(&figure);
    str_free(&image);
    str_free(&data);
    return ok;
}

enum { DATABASES = 16 };

static bool plot(const struct text_list *rest, const char *path, const char *data,
                 struct err *err) {
    int files = rest->count - 1, opened = 0;
    const struct study *study = study_find(rest->items[files], err);
    if (!study) return false;
    struct subject subjects[DATABASES];
    while (opened < files && subject_open(&subjects[opened], rest->items[opened], err)) opened++;
    bool ok = opened == files && draw(study, subjects, opened, path, data, err);
    for (int i = 0; i < opened; i++) subject_close(&subjects[i]);
    return ok;
}

static bool check(const struct text_list *rest, const char *out, bool force, struct err *err) {
    enum plot_format format;
    if (rest->count < 2 || rest->count > DATABASES + 1)
        return err_set(err, ERR_USAGE,
                       "found %d arguments, expected 1 to %d databases and a figure", rest->count,
                       DATABASES);
    if (!out) return err_set(err, ERR_USAGE, "found no --out, expected --out FILE");
    if (!plot_format_of(out, &format, err)) return false;
    return force || !file_exists(out)
               ? true
               : err_set(err, ERR_EXISTS, "%s: found a file, expected none or --force", out);
}

static bool run(const struct command *command, int argc, char **argv, struct err *err) {
    const char *out = NULL, *data = NULL;
    bool force = false, done = false;
    struct text_list rest;
    const struct option options[] = {
        {"out", OPTION_TEXT, &out, "FILE", "image: .svg, .png or .pdf", 0, 0},
        {"data", OPTION_TEXT, &data, "FILE", "also write the data file (tab-separated)", 0, 0},
        {"force", OPTION_FLAG, &force, NULL, "replace files that exist", 0, 0},
        {NULL, OPTION_FLAG, NULL, NULL, NULL, 0, 0},
    };
    bool ok = options_parse(command, options, argc, argv, &rest, &done, err);
    if (ok && !done)
        ok = check(&rest, out, force, err) &&
             (force || !data || !file_exists(data) ||
              err_set(err, ERR_EXISTS, "%s: found a file, expected none or --force", data)) &&
             output_is_no_input(out, rest.items, rest.count - 1, err) &&
             output_is_no_input(data, rest.items, rest.count - 1, err) &&
             (!data || strcmp(data, out) != 0 ||
              err_set(err, ERR_USAGE, "%s: found as --out and --data, expected two files", out)) &&
             plot(&rest, out, data, err);
    text_list_free(&rest);
    return ok;
}

const struct command command_plot = {
    .name = "plot",
    .arguments = "DB... FIGURE --out FILE.{svg,png,pdf}",
    .summary = "draw one figure (steelyard figures lists them)",
    .example = "steelyard plot result.db load_map --out load_map.svg",
    .run = run,
};
