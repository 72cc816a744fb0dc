/* How often the program has been told to end: SIGINT, SIGTERM, SIGHUP. It ends when it can. */
#ifndef IMAPMUX_CTL_INTERRUPT_H
#define IMAPMUX_CTL_INTERRUPT_H

/* From now on these signals are counted, and nothing else. */
void interrupt_listen(void);

/* From any thread. */
int interrupt_count(void);

#endif
