# imapmux: `make help` prints the targets. B is the build folder; several can live side by side.

B       ?= build
CC      ?= cc
PREFIX  ?= /usr/local
VERSION := 0.1.0
PYTHON  ?= /usr/bin/python3
TEST_CC ?= clang

PACKAGES := libuv openssl hiredis ldap libconfuse libcrypt
WARNINGS := -Wall -Wextra -Werror -Wshadow -Wconversion -Wstrict-prototypes -Wmissing-prototypes \
            -Wpointer-arith -Wvla -Wformat=2 -Wundef
HARDEN   ?= -O2 -fstack-protector-strong -D_FORTIFY_SOURCE=2
SANITIZE ?=
CFLAGS   ?= -g
ALL_CFLAGS = -std=c11 -D_GNU_SOURCE -DIMAPMUX_VERSION='"$(VERSION)"' -I. -MMD -MP -fPIE $(WARNINGS) $(HARDEN) \
            $(SANITIZE) $(CFLAGS) $(PACKAGE_CFLAGS)
ALL_LDFLAGS = -pie -Wl,-z,relro,-z,now $(SANITIZE) $(LDFLAGS)
PACKAGE_CFLAGS = $(shell pkg-config --cflags $(PACKAGES))
LIBS     = $(shell pkg-config --libs $(PACKAGES)) -llber -lpthread

# The layers, lowest first: a layer may use itself and what stands before it (tests/layers.py checks).
LAYERS     := base imap net auth routing proxy
base_DIR   := proxy/base
imap_DIR   := proxy/imap
net_DIR    := proxy/net
auth_DIR   := auth
routing_DIR := routing
proxy_DIR  := proxy
SOURCES    := $(foreach l,$(LAYERS),$(filter-out proxy/main.c,$(wildcard $($(l)_DIR)/*.c)))
ARCHIVES   := $(foreach l,proxy routing auth net imap base,$B/lib$l.a)
UNIT_TESTS := $(patsubst tests/unit/%.c,$B/tests/unit/%,$(wildcard tests/unit/test_*.c))
FUZZERS    := $(patsubst tests/fuzz/%.c,$B/fuzz/%,$(wildcard tests/fuzz/fuzz_*.c))
C_FILES     = $(shell git ls-files '*.c' '*.h')

all: $B/imapmux ## Build the release: build/imapmux

$B/imapmux: $B/obj/proxy/main.o $(ARCHIVES)
	$(CC) $(ALL_LDFLAGS) -o $@ $^ $(LIBS)

define archive
$B/lib$(1).a: $$(patsubst %.c,$B/obj/%.o,$$(filter-out proxy/main.c,$$(wildcard $$($(1)_DIR)/*.c)))
	@rm -f $$@
	ar rcs $$@ $$^
endef
$(foreach l,$(LAYERS),$(eval $(call archive,$l)))

$B/obj/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) -c -o $@ $<

$B/tests/unit/%: tests/unit/%.c $(ARCHIVES)
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) -o $@ $< $(ARCHIVES) $(LIBS) -lcmocka

$B/fuzz/%: tests/fuzz/%.c $(ARCHIVES)
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) -Wno-missing-prototypes -fsanitize=fuzzer $(ALL_LDFLAGS) -o $@ $< $(ARCHIVES) $(LIBS)

unit: $(UNIT_TESTS)
	@set -e; for t in $^; do echo "== $$t"; $$t; done

fuzzers: $(FUZZERS)

-include $(shell find $B -name '*.d' 2>/dev/null)

.PHONY: all unit fuzzers
