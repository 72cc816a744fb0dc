/* Owns what is known of the mailboxes at one store, and the comparison of two. */
#include "proxy/store/inventory.h"

#include "proxy/imap/listing.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

/* Between the parts of a path; no name can hold it that a server would take. */
#define PATH_SEPARATOR '\x1f'

static bool senseless(struct err *err, struct span response)
{
    return err_set(err, ERR_PEER, "what it tells makes no sense: %.*s",
                   (int)(response.len < 100 ? response.len : 100), response.ptr);
}

/* --- mailboxes --- */

static struct inventory_mailbox *add(struct inventory *inventory, const char *name, struct err *err)
{
    size_t size = strlen(name) + 1;
    struct inventory_mailbox *mailbox = NULL;

    if (inventory->count >= INVENTORY_MAILBOXES_MAX) {
        err_set(err, ERR_PEER, "more than %d mailboxes", INVENTORY_MAILBOXES_MAX);
        return NULL;
    }
    mailbox = mem_new(sizeof *mailbox + size);
    if (mailbox != NULL) {
        memcpy(mailbox->name, name, size);
        HASH_ADD_STR(inventory->by_name, name, mailbox);
    }
    if (mailbox == NULL || mailbox->hh.tbl == NULL) {
        mem_free(mailbox);
        err_set(err, ERR_INTERNAL, "no memory for mailboxes");
        return NULL;
    }
    inventory->count++;
    return mailbox;
}

/* The mailbox that is meant, made if need be. */
static struct inventory_mailbox *find(struct inventory *inventory, const struct arg *told,
                                      struct err *err)
{
    char *name = mem_new(told->value_len + 1);
    struct inventory_mailbox *mailbox = NULL;

    if (name == NULL) {
        err_set(err, ERR_INTERNAL, "no memory for mailboxes");
        return NULL;
    }
    arg_copy(told, name, told->value_len + 1);
    if (strcasecmp(name, "INBOX") == 0)
        memcpy(name, "INBOX", sizeof "INBOX");
    HASH_FIND_STR(inventory->by_name, name, mailbox);
    if (mailbox == NULL)
        mailbox = add(inventory, name, err);
    mem_free(name);
    return mailbox;
}

static bool begins_with(const char *name, const char *prefix)
{
    return prefix[0] != '\0' && strncmp(name, prefix, strlen(prefix)) == 0;
}

static bool is_foreign(const struct inventory *inventory, const char *name)
{
    for (size_t i = 0; i < inventory->foreign_count; i++)
        if (begins_with(name, inventory->foreign_prefixes[i]))
            return true;
    return false;
}

static bool take_list(struct inventory *inventory, const struct listing *listing, struct err *err)
{
    struct inventory_mailbox *mailbox = find(inventory, &listing->mailbox, err);

    if (mailbox == NULL)
        return false;
    if (mailbox->path != NULL || !listing->selectable || is_foreign(inventory, mailbox->name))
        return true;

    bool stripped = begins_with(mailbox->name, inventory->own_prefix);
    const char *own = mailbox->name + (stripped ? strlen(inventory->own_prefix) : 0);

    mailbox->path = mem_copy_text(own, strlen(own));
    if (mailbox->path == NULL)
        return err_set(err, ERR_INTERNAL, "no memory for mailboxes");
    for (char *at = mailbox->path; listing->separator != '\0' && *at != '\0'; at++)
        if (*at == listing->separator)
            *at = PATH_SEPARATOR;
    inventory->own_count++;
    return true;
}

static bool take_status(struct inventory *inventory, const struct listing *listing, struct err *err)
{
    struct inventory_mailbox *mailbox = find(inventory, &listing->mailbox, err);

    if (mailbox == NULL)
        return false;
    mailbox->counted = true;
    mailbox->uidvalidity = listing->uidvalidity;
    mailbox->uidnext = listing->uidnext;
    mailbox->messages = listing->messages;
    return true;
}

/* The user's own mailboxes are in the first of the namespaces. */
static bool take_spaces(struct inventory *inventory, struct listing *listing)
{
    struct arg prefix;
    enum listing_space space;
    bool first = true;

    while ((space = listing_space(listing, &prefix)) > LISTING_SPACE_END) {
        char *into = space == LISTING_OWN && first ? inventory->own_prefix
                     : inventory->foreign_count < INVENTORY_FOREIGN_MAX
                         ? inventory->foreign_prefixes[inventory->foreign_count++]
                         : NULL;

        if (into == NULL || arg_copy(&prefix, into, INVENTORY_PREFIX_MAX) >= INVENTORY_PREFIX_MAX)
            return false;
        first = false;
    }
    return space == LISTING_SPACE_END;
}

bool inventory_take(struct inventory *inventory, struct span response, struct err *err)
{
    struct listing listing;

    switch (listing_parse(response, &listing)) {
    case LISTING_LIST:
        return take_list(inventory, &listing, err);
    case LISTING_STATUS:
        return take_status(inventory, &listing, err);
    case LISTING_SPACES:
        return take_spaces(inventory, &listing) || senseless(err, response);
    case LISTING_OTHER:
        return true;
    default:
        return senseless(err, response);
    }
}

void inventory_release(struct inventory *inventory)
{
    struct inventory_mailbox *mailbox, *next;

    HASH_ITER(hh, inventory->by_name, mailbox, next)
    {
        HASH_DEL(inventory->by_name, mailbox);
        mem_free(mailbox->path);
        mem_free(mailbox);
    }
    *inventory = (struct inventory){0};
}

/* --- comparison --- */

struct comparing {
    const char *from_name, *to_name;
    struct inventory_comparison *result;
};

static int by_path(const void *a, const void *b)
{
    const struct inventory_mailbox *const *one = a, *const *other = b;

    return strcmp((*one)->path, (*other)->path);
}

/* Those with a path, in its order, and NULL behind them; NULL without memory. */
static struct inventory_mailbox **sorted(const struct inventory *inventory)
{
    struct inventory_mailbox **list = mem_array(inventory->own_count + 1, sizeof *list);
    size_t count = 0;

    if (list == NULL)
        return NULL;
    for (struct inventory_mailbox *at = inventory->by_name; at != NULL; at = at->hh.next)
        if (at->path != NULL)
            list[count++] = at;
    qsort(list, count, sizeof *list, by_path);
    return list;
}

/* The next one to be told of, with its name; NULL when enough have been. */
static char *next_difference(struct comparing *c, const struct inventory_mailbox *mailbox)
{
    size_t at = c->result->difference_count++;

    if (at >= INVENTORY_DIFFERENCES_MAX)
        return NULL;

    struct inventory_difference *difference = &c->result->differences[at];

    snprintf(difference->mailbox, INVENTORY_TEXT_MAX, "%s", mailbox->path);
    for (char *ch = difference->mailbox; *ch != '\0'; ch++)
        if (*ch == PATH_SEPARATOR)
            *ch = '/';
    return difference->what;
}

static void is_only_at(struct comparing *c, const struct inventory_mailbox *mailbox,
                       const char *store)
{
    char *what = next_difference(c, mailbox);

    if (what != NULL)
        snprintf(what, INVENTORY_TEXT_MAX, "only at %s", store);
}

static bool number_differs(struct comparing *c, const struct inventory_mailbox *mailbox,
                           const char *name, uint64_t from, uint64_t to)
{
    char *what = from == to ? NULL : next_difference(c, mailbox);

    if (what != NULL)
        snprintf(what, INVENTORY_TEXT_MAX, "%s is %" PRIu64 " at %s, %" PRIu64 " at %s", name, from,
                 c->from_name, to, c->to_name);
    return from != to;
}

static bool never_had_mail(const struct inventory_mailbox *mailbox)
{
    return mailbox->messages == 0 && mailbox->uidnext == 1;
}

/*
 * One difference of a mailbox is enough. Where there never was a message nobody can know a UID, and
 * the UIDVALIDITY may be another: stores make an INBOX when somebody first looks at it, as we do.
 */
static void compare_both(struct comparing *c, const struct inventory_mailbox *from,
                         const struct inventory_mailbox *to)
{
    if (!from->counted || !to->counted) {
        char *what = next_difference(c, from);

        if (what != NULL)
            snprintf(what, INVENTORY_TEXT_MAX, "%s tells no STATUS of it",
                     from->counted ? c->to_name : c->from_name);
        return;
    }
    if (!(never_had_mail(from) && never_had_mail(to)) &&
        (number_differs(c, from, "UIDVALIDITY", from->uidvalidity, to->uidvalidity) ||
         number_differs(c, from, "UIDNEXT", from->uidnext, to->uidnext) ||
         number_differs(c, from, "MESSAGES", from->messages, to->messages)))
        return;
    c->result->mailboxes++;
    c->result->messages += from->messages;
}

bool inventory_compare(const struct inventory *from, const struct inventory *to,
                       const char *from_name, const char *to_name,
                       struct inventory_comparison *comparison_out)
{
    struct comparing c = {from_name, to_name, comparison_out};
    struct inventory_mailbox **all_from = sorted(from), **all_to = sorted(to);
    struct inventory_mailbox **f = all_from, **t = all_to;

    *comparison_out = (struct inventory_comparison){0};
    while (f != NULL && t != NULL && (*f != NULL || *t != NULL)) {
        int order = *f == NULL ? 1 : *t == NULL ? -1 : by_path(f, t);

        if (order < 0)
            is_only_at(&c, *f++, from_name);
        else if (order > 0)
            is_only_at(&c, *t++, to_name);
        else
            compare_both(&c, *f++, *t++);
    }
    bool good = f != NULL && t != NULL;
    mem_free(all_from);
    mem_free(all_to);
    return good;
}
