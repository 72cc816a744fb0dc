/* The command line of `load`. */
#ifndef IMAPMUX_BENCH_OPTIONS_H
#define IMAPMUX_BENCH_OPTIONS_H

#include "bench/run.h"

#include <sys/types.h>

struct options {
    unsigned clients;
    double seconds;
    bool plain, hold;
    pid_t store; /* to be signalled at the start; 0: none */
};

/* Fills both, with defaults where nothing is said; ends the program with 2 if it makes no sense. */
void options_parse(int argc, char **argv, struct options *options, struct run *run);

#endif
