/* Owns the counting of who holds a text. */
#include "proxy/base/shared_text.h"

#include "proxy/base/mem.h"

#include <string.h>

struct shared_text {
    size_t holders;
    size_t len;
    char bytes[];
};

struct shared_text *shared_text_of(struct span text, struct shared_text **latest)
{
    struct shared_text *shared = *latest;

    if (shared == NULL || !span_equal(shared_text_span(shared), text)) {
        shared = mem_new(sizeof *shared + text.len);
        if (shared == NULL)
            return NULL;
        shared->holders = 1;
        shared->len = text.len;
        memcpy(shared->bytes, text.ptr, text.len);
        shared_text_release(latest);
        *latest = shared;
    }
    shared->holders++;
    return shared;
}

void shared_text_release(struct shared_text **text)
{
    struct shared_text *shared = *text;

    *text = NULL;
    if (shared != NULL && --shared->holders == 0)
        mem_free(shared);
}

struct span shared_text_span(const struct shared_text *text)
{
    return text == NULL ? (struct span){"", 0} : (struct span){text->bytes, text->len};
}
