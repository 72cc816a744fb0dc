/* Owns the terminal, by ncurses. */
#include "proxy/ctl/terminal.h"

#include <curses.h>
#include <stdlib.h>
#include <term.h>
#include <unistd.h>

/* term.h has macros of all capabilities of terminals. */
#undef lines
#undef columns

static SCREEN *screen;
static bool has_colours;

enum { PAIR_LABEL = 1, PAIR_GOOD, PAIR_WARNING, PAIR_ALARM };

/* https://no-color.org: whatever it is set to, unless that is nothing. */
static bool colours_are_wanted(void)
{
    const char *no_color = getenv("NO_COLOR");

    return no_color == NULL || *no_color == '\0';
}

static void prepare_colours(void)
{
    has_colours = colours_are_wanted() && has_colors() && start_color() == OK;
    if (!has_colours)
        return;
    use_default_colors();
    init_pair(PAIR_LABEL, COLOR_CYAN, -1);
    init_pair(PAIR_GOOD, COLOR_GREEN, -1);
    init_pair(PAIR_WARNING, COLOR_YELLOW, -1);
    init_pair(PAIR_ALARM, COLOR_RED, -1);
}

/* Asked first, for newterm(3) leaves something behind when it fails. */
static bool is_known(void)
{
    int problem;

    if (setupterm(NULL, STDOUT_FILENO, &problem) != OK)
        return false;
    del_curterm(cur_term);
    return true;
}

bool terminal_open(void)
{
    if (!isatty(STDOUT_FILENO) || !isatty(STDIN_FILENO) || !is_known())
        return false;
    screen = newterm(NULL, stdout, stdin);
    if (screen == NULL)
        return false;
    cbreak();
    noecho();
    curs_set(0);
    keypad(stdscr, TRUE);
    prepare_colours();
    return true;
}

void terminal_close(void)
{
    if (screen == NULL)
        return;
    endwin();
    delscreen(screen);
    screen = NULL;
}

void terminal_size(int *lines_out, int *columns_out)
{
    *lines_out = LINES;
    *columns_out = COLS;
}

static attr_t attributes_of(enum sheet_style style)
{
    static const struct {
        attr_t always;
        short pair;
    } styles[] = {
        [SHEET_PLAIN] = {A_NORMAL, 0},
        [SHEET_HEAD] = {A_REVERSE, 0},
        [SHEET_LABEL] = {A_BOLD, PAIR_LABEL},
        [SHEET_GOOD] = {A_NORMAL, PAIR_GOOD},
        [SHEET_WARNING] = {A_BOLD, PAIR_WARNING},
        [SHEET_ALARM] = {A_BOLD | A_REVERSE, PAIR_ALARM},
    };

    return styles[style].always | (has_colours ? (attr_t)COLOR_PAIR(styles[style].pair) : A_NORMAL);
}

void terminal_show(const struct sheet *sheet)
{
    erase();
    for (int line = 0; line < sheet->lines; line++)
        for (int column = 0; column < sheet->columns; column++) {
            attr_t attributes = attributes_of((enum sheet_style)sheet->styles[line][column]);

            mvaddch(line, column, (unsigned char)sheet->text[line][column] | attributes);
        }
    refresh();
}

int terminal_key(int wait_ms)
{
    timeout(wait_ms);
    int key = getch();

    switch (key) {
    case ERR:
        return TERMINAL_NONE;
    case KEY_UP:
        return TERMINAL_UP;
    case KEY_DOWN:
        return TERMINAL_DOWN;
    case KEY_RESIZE:
        return TERMINAL_RESIZED;
    default:
        return key;
    }
}
