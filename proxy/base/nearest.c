/* Owns the measure of how much two words differ. */
#include "proxy/base/nearest.h"

enum { WORD_MAX = 40 }; /* longer ones are like none */

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* The optimal string alignment of both. Steps[i][j] is that of their first i and j letters. */
static size_t distance_of(struct span a, struct span b)
{
    size_t steps[WORD_MAX + 1][WORD_MAX + 1];

    for (size_t i = 0; i <= a.len; i++) {
        for (size_t j = 0; j <= b.len; j++) {
            size_t *here = &steps[i][j];

            if (i == 0 || j == 0) {
                *here = i + j;
                continue;
            }
            *here = least(steps[i - 1][j], steps[i][j - 1]) + 1;
            *here = least(*here, steps[i - 1][j - 1] + (a.ptr[i - 1] != b.ptr[j - 1]));
            if (i > 1 && j > 1 && a.ptr[i - 1] == b.ptr[j - 2] && a.ptr[i - 2] == b.ptr[j - 1])
                *here = least(*here, steps[i - 2][j - 2] + 1);
        }
    }
    return steps[a.len][b.len];
}

void nearest_init(struct nearest *nearest, struct span wanted)
{
    *nearest = (struct nearest){.wanted = wanted, .distance = (wanted.len + 1) / 3 + 1};
}

void nearest_offer(struct nearest *nearest, struct span word)
{
    if (nearest->wanted.len > WORD_MAX || word.len > WORD_MAX)
        return;

    size_t distance = distance_of(nearest->wanted, word);

    if (distance < nearest->distance) {
        nearest->distance = distance;
        nearest->word = word;
    }
}
