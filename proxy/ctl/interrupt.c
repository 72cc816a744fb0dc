/* Owns the count of signals to end. */
#include "proxy/ctl/interrupt.h"

#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>

static atomic_int count;

static void on_signal(int number)
{
    (void)number;
    atomic_fetch_add(&count, 1); /* free of locks */
}

void interrupt_listen(void)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};

    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGHUP, &action, NULL);
}

int interrupt_count(void)
{
    return atomic_load(&count);
}
