/*
 * Two stores that tell anything: each mailbox is counted once, a store does not differ from itself
 * but for what it has not counted, and differences are the same from both sides.
 */
#include <assert.h>
#include <stdint.h>

#include "proxy/store/inventory.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Responses end with NUL; their first octet says whose they are. */
static void tell(struct inventory stores[2], const char *text, size_t size)
{
    while (size > 0) {
        const char *end = memchr(text, '\0', size);
        size_t len = end == NULL ? size : (size_t)(end - text);
        struct err err = {0};

        if (len > 0) {
            struct span response = {text + 1, len - 1};
            bool good = inventory_take(&stores[text[0] & 1], response, &err);

            assert(good == (err.kind == ERR_NONE));
        }
        size -= len + (end != NULL);
        text += len + (end != NULL);
    }
}

static size_t uncounted(const struct inventory *inventory)
{
    size_t own = 0, count = 0, all = 0;

    for (const struct inventory_mailbox *at = inventory->by_name; at != NULL; at = at->hh.next) {
        all++;
        own += at->path != NULL;
        count += at->path != NULL && !at->counted;
    }
    assert(all == inventory->count && own == inventory->own_count &&
           all <= INVENTORY_MAILBOXES_MAX);
    return count;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct inventory stores[2] = {{0}, {0}};
    struct inventory_comparison there, back, same;

    tell(stores, (const char *)data, size);
    if (inventory_compare(&stores[0], &stores[1], "a", "b", &there) &&
        inventory_compare(&stores[1], &stores[0], "b", "a", &back) &&
        inventory_compare(&stores[0], &stores[0], "a", "a", &same)) {
        assert(there.difference_count == back.difference_count);
        assert(there.mailboxes == back.mailboxes && there.messages == back.messages);
        assert(same.difference_count == uncounted(&stores[0]));
        assert(same.mailboxes + same.difference_count == stores[0].own_count);
        assert(there.mailboxes <= same.mailboxes);
        assert(2 * there.mailboxes + there.difference_count <=
               stores[0].own_count + stores[1].own_count);
    }
    inventory_release(&stores[0]);
    inventory_release(&stores[1]);
    return 0;
}
