/* cmd_report.c - steelyard report: figures, captions and findings of a replay, as one page */
#include <dirent.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "cli/commands.h"
#include "cli/findings.h"
#include "cli/report_page.h"

/* Refuses a folder that holds something already, unless forced. */
static bool check_folder(const char *path, bool force, struct err *err) {
    if (!file_exists(path)) return true;
    if (!file_is_folder(path))
        return err_set(err, ERR_EXISTS, "%s: found a file, expected a folder or nothing", path);
    DIR *folder = force ? NULL : opendir(path);
    bool empty = true;
    for (struct dirent *entry; folder && (entry = readdir(folder));)
        empty &= strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0;
    if (folder) closedir(folder);
    return empty
               ? true
               : err_set(err, ERR_EXISTS,
                         "%s: found a folder that is not empty, expected --force to write into it",
                         path);
}

static bool print_json(const char *page, const struct table *findings, struct err *err) {
    struct str text = {0};
    str_puts(&text, "{\"report\": ");
    json_quote(&text, page, strlen(page));
    str_puts(&text, ",\n\"findings\": ");
    bool ok = table_format(findings, TABLE_AS_JSON, &text, err);
    str_puts(&text, "}\n");
    if (ok && text.failed) ok = err_memory(err, "report");
    if (ok) fputs(str_text(&text), stdout);
    str_free(&text);
    return ok;
}

static bool print_result(const char *folder, const struct table *findings,
                         struct output_choice choice, struct err *err) {
    struct str page = {0};
    file_join(&page, folder, "report.html");
    bool ok = true;
    if (choice.csv)
        ok = output_table(findings, choice, err);
    else if (choice.json)
        ok = print_json(str_text(&page), findings, err);
    else {
        printf("%s\n", str_text(&page));
        for (int64_t row = 0; row < table_rows(findings); row++)
            printf("%lld. %s\n", (long long)row + 1,
                   table_cell(findings, row, table_find(findings, "text")));
    }
    str_free(&page);
    return ok;
}

static bool report(const struct text_list *files, const char *folder, struct output_choice choice,
                   struct err *err) {
    struct subject *subjects = calloc((size_t)files->count, sizeof *subjects);
    if (!subjects) return err_memory(err, "report");
    int opened = 0;
    while (opened < files->count && subject_open(&subjects[opened], files->items[opened], err))
        opened++;
    bool ok = opened == files->count;
    struct table *findings = ok ? findings_of(subjects, opened, err) : NULL;
    ok = findings && report_write(subjects, opened, findings, folder, err) &&
         print_result(folder, findings, choice, err);
    table_free(findings);
    for (int i = 0; i < opened; i++) subject_close(&subjects[i]);
    free(subjects);
    return ok;
}

static bool run(const struct command *command, int argc, char **argv, struct err *err) {
    const char *out = NULL;
    bool force = false, done = false;
    struct output_choice choice = {0};
    struct text_list files;
    const struct option options[] = {
        {"out", OPTION_TEXT, &out, "DIR", "folder for report.html and the figures", 0, 0},
        {"force", OPTION_FLAG, &force, NULL, "write into a folder that is not empty", 0, 0},
        OPTION_OUTPUT(choice),
        {NULL, OPTION_FLAG, NULL, NULL, NULL, 0, 0},
    };
    bool ok = options_parse(command, options, argc, argv, &files, &done, err);
    if (ok && !done) {
        if (files.count < 1)
            ok = err_set(err, ERR_USAGE, "found no database, expected one");
        else if (!out)
            ok = err_set(err, ERR_USAGE, "found no --out, expected --out DIR");
        else if (choice.csv && choice.json)
            ok = err_set(err, ERR_USAGE, "found both --json and --csv, expected one");
        else
            ok = check_folder(out, force, err) && report(&files, out, choice, err);
    }
    text_list_free(&files);
    return ok;
}

const struct command command_report = {
    .name = "report",
    .arguments = "DB... --out DIR",
    .summary = "write a page with figures and findings of a replay",
    .example = "steelyard report result.db --out report",
    .run = run,
};
