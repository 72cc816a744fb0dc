# imapmux. `make help` prints the targets. B is the build folder; several can live side by side.

ifeq ($(MAKELEVEL),0)
MAKEFLAGS += --jobs=$(shell nproc)
endif

B       ?= build
PREFIX  ?= /usr/local
SYSCONF ?= /etc/imapmux
UNITDIR ?=
VERSION := 0.1.0
PYTHON  ?= /usr/bin/python3

PACKAGES := libuv openssl hiredis ldap libconfuse libcrypt librhonabwy jansson libcurl libsystemd libseccomp libmicrohttpd
WARNINGS := -Wall -Wextra -Werror -Wshadow -Wconversion -Wstrict-prototypes -Wmissing-prototypes \
            -Wpointer-arith -Wvla -Wformat=2 -Wundef
HARDEN   ?= -O2 -fstack-protector-strong -D_FORTIFY_SOURCE=2
SANITIZE ?=
CFLAGS   ?= -g
ALL_CFLAGS  = -std=c11 -D_GNU_SOURCE -DIMAPMUX_VERSION='"$(VERSION)"' -DIMAPMUX_CONF='"$(SYSCONF)/proxy.conf"' \
              -I. -MMD -MP -fPIE $(WARNINGS) $(HARDEN) $(SANITIZE) $(CFLAGS) $(PACKAGE_CFLAGS)
ALL_LDFLAGS = -pie -Wl,-z,relro,-z,now $(SANITIZE) $(LDFLAGS)
PACKAGE_CFLAGS := $(shell pkg-config --cflags $(PACKAGES) 2>/dev/null)
LIBS := $(shell pkg-config --libs $(PACKAGES) 2>/dev/null) -llber -lpthread -lm
CTL_LIBS := $(shell pkg-config --libs jansson ncurses) -lpthread

# Sanitizers start programs and stop threads to report what they find: their builds have no sandbox (proxy/base/sandbox.c).
ASAN := CC=clang HARDEN=-O1 SANITIZE="-DIMAPMUX_WITHOUT_SANDBOX -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"
TSAN := CC=clang HARDEN=-O1 SANITIZE="-DIMAPMUX_WITHOUT_SANDBOX -fsanitize=thread -fno-omit-frame-pointer"
THREADED_TESTS := test_gate test_inbox test_jwks test_limits test_log test_passwd test_resolve

DEPS := build-essential pkg-config git libuv1-dev libssl-dev libhiredis-dev libldap-dev libconfuse-dev uthash-dev \
        libcrypt-dev librhonabwy-dev libjansson-dev libcurl4-gnutls-dev libsystemd-dev libseccomp-dev libmicrohttpd-dev libncurses-dev libcmocka-dev \
        clang clang-format clang-tidy cppcheck libclang-rt-14-dev llvm \
        slapd ldap-utils redis-server dovecot-imapd isync python3 python3-pytest curl openssl ca-certificates mandoc \
        chromium chromium-driver python3-selenium prometheus fail2ban debhelper fakeroot lintian debootstrap \
        systemd haproxy keepalived python3-yaml ssl-cert \
        iproute2 libical3 libjansson4 libpcre3 libpq5 libsasl2-modules libsqlite3-0 libwrap0 libxapian30 libxml2

# A store for the tests. Debian would not install it beside Dovecot, so it is only unpacked here; the last line of DEPS
# has its libraries. The tests read CYRUS from their environment.
CYRUS      ?= $(CURDIR)/build-cyrus
CYRUS_DEBS := cyrus-common cyrus-imapd sasl2-bin
export CYRUS

# A layer is a folder, and an archive; tests/layers.py says who may use whom.
LAYERS      := base imap net ctl auth routing store session process fleet admin http
base_DIR    := proxy/base
imap_DIR    := proxy/imap
net_DIR     := proxy/net
ctl_DIR     := proxy/ctl
auth_DIR    := auth auth/ldap auth/passwd auth/token
routing_DIR := routing
store_DIR   := proxy/store
session_DIR := proxy/session
process_DIR := proxy/process
fleet_DIR   := proxy/fleet
admin_DIR   := proxy/admin
http_DIR    := proxy/http
MAINS       := proxy/main.c proxy/ctl/imapmuxctl.c
ARCHIVES    := $(foreach l,http admin fleet process session store routing auth ctl net imap base,$B/lib$l.a)
UNIT_TESTS  := $(patsubst tests/unit/%.c,$B/tests/unit/%,$(wildcard tests/unit/test_*.c))
FUZZERS     := $(patsubst tests/fuzz/%.c,$B/fuzz/%,$(wildcard tests/fuzz/fuzz_*.c))
FUZZ_SECONDS ?= 3
SOAK_SECONDS ?= 600
SOAK_SEED    ?=
# Where threads meet: hand-over, stop, many sessions. These run under TSan, too.
THREAD_STORIES := tests/fault/test_clients_misbehave.py tests/fault/test_many_sessions.py tests/fault/test_storm.py \
                  tests/fault/test_letting_go.py tests/fault/test_hold.py tests/fault/test_guessers.py tests/fault/test_masters.py \
                  tests/fault/test_limits.py tests/fault/test_admin.py tests/fault/test_log.py tests/fault/test_directory_servers.py \
                  tests/fault/test_ctl_move.py::test_at_most_so_many_at_a_time tests/fault/test_shards.py tests/fault/test_fleet.py tests/fault/test_reload.py

all: $B/imapmux $B/imapmuxctl ## Build the release: build/imapmux and build/imapmuxctl

$B/imapmux: $B/obj/proxy/main.o $(ARCHIVES)
	$(CC) $(ALL_LDFLAGS) -o $@ $^ $(LIBS)

$B/imapmuxctl: $B/obj/proxy/ctl/imapmuxctl.o $B/libctl.a $B/libbase.a
	$(CC) $(ALL_LDFLAGS) -o $@ $^ $(CTL_LIBS)

# With the sanitizer's runtime as a library, whose malloc tests/fault/test_no_memory.py can put another one before.
$B/imapmux-shared: $B/obj/proxy/main.o $(ARCHIVES)
	$(CC) $(ALL_LDFLAGS) -shared-libasan -Wl,-rpath,$$($(CC) -print-runtime-dir) -o $@ $^ $(LIBS)

define archive
$B/lib$(1).a: $$(patsubst %.c,$B/obj/%.o,$$(filter-out $(MAINS),$$(wildcard $$(addsuffix /*.c,$$($(1)_DIR)))))
	@rm -f $$@
	ar rcs $$@ $$^
endef
$(foreach l,$(LAYERS),$(eval $(call archive,$l)))

$B/obj/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) -c -o $@ $<

# The compiler does not see what the assembler includes.
$B/obj/proxy/http/assets.o: proxy/http/page.html proxy/http/page.css proxy/http/page.js

$B/tests/unit/%: tests/unit/%.c $(ARCHIVES)
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) -o $@ $< $(ARCHIVES) $(LIBS) -lcmocka

$B/fuzz/%: tests/fuzz/%.c $(ARCHIVES)
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) -Wno-missing-prototypes -fsanitize=fuzzer $(ALL_LDFLAGS) -o $@ $< $(ARCHIVES) $(LIBS)

deps: ## Install what building and testing need (Debian 12, as root); nothing when all is there
	@dpkg-query -W -f '$${db:Status-Status}\n' $(DEPS) 2>/dev/null | grep -c '^installed$$' | grep -qx $(words $(DEPS)) || \
	  (apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $(DEPS))
	@$(MAKE) -s cyrus

cyrus: $(CYRUS)/unpacked ## Unpack Cyrus, for the tests, in build-cyrus; nothing of it is installed

$(CYRUS)/unpacked:
	mkdir -p $(CYRUS)
	cd $(CYRUS) && rm -f *.deb && get="apt-get download -q -o APT::Sandbox::User=root $(CYRUS_DEBS)" && \
	  ($$get || (apt-get update -q && $$get)) && for deb in *.deb; do dpkg-deb -x $$deb . || exit 1; done
	touch $@

demo: deps ## Start a directory, Redis, two stores and imapmux; show a session; stay up until Ctrl-C (CHECK=1: exit)
	@$(MAKE) --no-print-directory B=$B all
	IMAPMUX=$B/imapmux $(PYTHON) deploy/demo.py $(if $(CHECK),--check)

# The release is there for its memory to be searched (tests/fault/test_secrets.py): a sanitizer keeps what is freed.
test: deps ## Set up and run all tests: unit, real and fault under ASan+UBSan, threaded ones under TSan too, fuzzers briefly
	@$(MAKE) --no-print-directory B=build all
	@$(MAKE) --no-print-directory asan
	@$(MAKE) --no-print-directory tsan
	@$(MAKE) --no-print-directory fuzz
	@MAKEFLAGS= $(MAKE) --no-print-directory --jobs=6 --output-sync=target test-faults-a-h test-faults-i-o test-faults-p-z test-threads test-moves test-others

# They wait more than they compute, and run side by side; each is shown when it is done. pytest runs the unit tests, too
# (tests/test_unit.py), so that its last lines count everything.
PYTEST := $(PYTHON) -m pytest -q -p no:cacheprovider --durations=5
test-faults-a-h:
	IMAPMUX=build-asan/imapmux $(PYTEST) tests/fault/test_[a-h]*.py

test-faults-i-o:
	IMAPMUX=build-asan/imapmux $(PYTEST) tests/fault/test_[i-o]*.py

test-faults-p-z:
	IMAPMUX=build-asan/imapmux $(PYTEST) tests/fault/test_[p-z]*.py

test-threads:
	IMAPMUX=build-tsan/imapmux $(PYTEST) $(THREAD_STORIES)

test-moves:
	IMAPMUX=build-asan/imapmux $(PYTEST) tests/moves

test-others:
	IMAPMUX=build-asan/imapmux $(PYTEST) --ignore=tests/fault --ignore=tests/moves tests

asan: ## Build everything with address and undefined-behaviour sanitizers in build-asan
	@$(MAKE) --no-print-directory B=build-asan $(ASAN) all unit-tests build-asan/imapmux-shared

tsan: ## Build the threaded tests and the proxy with the thread sanitizer in build-tsan
	@$(MAKE) --no-print-directory B=build-tsan $(TSAN) all $(THREADED_TESTS:%=build-tsan/tests/unit/%)

unit-tests: $(UNIT_TESTS)

FUZZ = $(MAKE) --no-print-directory B=build-fuzz \
       $(subst address$(comma)undefined,fuzzer-no-link$(comma)address$(comma)undefined,$(ASAN))

fuzz: ## Run every fuzz target for FUZZ_SECONDS (3), from the kept corpus and what earlier runs have found
	+@$(FUZZ) fuzz-run

# What is found goes to the build folder; the kept corpus is only read.
fuzz-run: $(FUZZERS)
	@printf '%s\n' $(^F) | xargs -P $$(nproc) -n 1 sh -c 'mkdir -p $B/corpus/$$1; \
	  dict=tests/fuzz/$$1.dict; [ -f $$dict ] || dict=tests/fuzz/imap.dict; \
	  $B/fuzz/$$1 -max_total_time=$(FUZZ_SECONDS) -timeout=20 -dict=$$dict -artifact_prefix=$B/$$1- \
	    $B/corpus/$$1 tests/fuzz/corpus/$$1 >$B/fuzz/$$1.log 2>&1 || { cat $B/fuzz/$$1.log; exit 255; }; \
	  echo "$$1: no findings in $(FUZZ_SECONDS) s"' fuzz

fuzz-merge: ## Put what was found into the kept corpus, tests/fuzz/corpus: as few files as reach all that is reached
	+@$(FUZZ) fuzz-merge-run

fuzz-merge-run: $(FUZZERS)
	@for n in $(^F); do kept=tests/fuzz/corpus/$$n; rm -rf $B/merged; mkdir -p $B/merged $B/corpus/$$n $$kept; \
	  $B/fuzz/$$n -set_cover_merge=1 -use_counters=0 -artifact_prefix=$B/$$n- $B/merged $$kept $B/corpus/$$n \
	    >$B/fuzz/$$n.log 2>&1 || exit 1; \
	  rm -rf $$kept && mv $B/merged $$kept && echo "$$n: $$(ls $$kept | wc -l) files"; done

# The benchmark: a store and a load of its own, and the proxies of Debian that imapmux is compared with.
BENCH_DEPS    := nginx libnginx-mod-mail haproxy dovecot-imapd dovecot-ldap slapd redis-server python3-pytest
BENCH_OBJECTS := $B/obj/bench/wire.o $B/libbase.a

$B/bench/store: $B/obj/bench/store.o $(BENCH_OBJECTS)
	@mkdir -p $(@D)
	$(CC) $(ALL_LDFLAGS) -o $@ $^ $(LIBS)

$B/bench/load: $(patsubst %,$B/obj/bench/%.o,load options client samples) $(BENCH_OBJECTS)
	@mkdir -p $(@D)
	$(CC) $(ALL_LDFLAGS) -o $@ $^ $(LIBS)

bench-tools: all $B/bench/store $B/bench/load

bench-deps: ## Install the proxies of the benchmark (as root); it starts its own, Debian's services are not used
	@dpkg-query -W -f '$${db:Status-Status}\n' $(BENCH_DEPS) 2>/dev/null | grep -c '^installed$$' | grep -qx $(words $(BENCH_DEPS)) || \
	  (apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $(BENCH_DEPS))

bench: bench-deps ## Compare with other proxies for a quarter of an hour, on a quiet machine; writes docs/performance.md
	@$(MAKE) --no-print-directory B=$B bench-tools
	IMAPMUX=$B/imapmux IMAPMUX_BENCH_TOOLS=$B/bench $(PYTHON) bench/bench.py --page docs/performance.md $(BENCH)

bench-quick: bench-deps ## Try each line of the benchmark once and briefly: does it work? Its figures mean nothing
	@$(MAKE) --no-print-directory B=$B bench-tools
	IMAPMUX_BENCH_TOOLS=$B/bench $(PYTHON) -m pytest -q -p no:cacheprovider bench
	IMAPMUX=$B/imapmux IMAPMUX_BENCH_TOOLS=$B/bench $(PYTHON) bench/bench.py --quick $(BENCH)

soak: deps ## Load and faults for SOAK_SECONDS (600): no message lost, no client astray, memory flat (SOAK_SEED, IMAPMUX)
	@$(MAKE) --no-print-directory B=$B all
	IMAPMUX=$${IMAPMUX:-$B/imapmux} $(PYTHON) tests/soak/soak.py --seconds $(SOAK_SECONDS) $(SOAK_SEED:%=--seed %)

# Warnings are errors in every build: gcc's in `all`, clang's in `asan`.
lint: ## Check the formatting, clang-tidy, cppcheck
	clang-format --dry-run --Werror $$(git ls-files '*.c' '*.h')
	cppcheck -q --error-exitcode=1 --inline-suppr --enable=warning,portability --std=c11 -I. --suppress=missingIncludeSystem \
	  --suppress='*:*uthash.h' -D_GNU_SOURCE proxy auth routing bench
	git ls-files 'proxy/*.c' 'auth/*.c' 'routing/*.c' 'bench/*.c' | xargs -P $$(nproc) -n 8 sh -c 'exec clang-tidy --quiet \
	  --warnings-as-errors="*" "$$@" -- -std=c11 -D_GNU_SOURCE -DIMAPMUX_VERSION=\"\" -I. $(PACKAGE_CFLAGS) 2>/dev/null' tidy

layers: all ## Check that no layer uses one above it, by include and by symbol
	$(PYTHON) tests/layers.py $B

install: all ## Install under PREFIX, with DESTDIR before it; systemd units in UNITDIR, if it is given
	install -D -m 755 $B/imapmux $(DESTDIR)$(PREFIX)/sbin/imapmux
	install -D -m 755 $B/imapmuxctl $(DESTDIR)$(PREFIX)/bin/imapmuxctl
	install -d $(DESTDIR)$(PREFIX)/share/bash-completion/completions
	$B/imapmuxctl --print-completion >$(DESTDIR)$(PREFIX)/share/bash-completion/completions/imapmuxctl
	install -D -m 644 docs/imapmux.8 $(DESTDIR)$(PREFIX)/share/man/man8/imapmux.8
	install -D -m 644 docs/imapmuxctl.1 $(DESTDIR)$(PREFIX)/share/man/man1/imapmuxctl.1
	install -D -m 644 docs/proxy.conf.5 $(DESTDIR)$(PREFIX)/share/man/man5/proxy.conf.5
	install -D -m 640 proxy.conf $(DESTDIR)$(SYSCONF)/proxy.conf.sample
	test -z "$(UNITDIR)" || install -D -m 644 -t $(DESTDIR)$(UNITDIR) deploy/systemd/imapmux.service deploy/systemd/imapmux.socket
	test -z "$(UNITDIR)" || sed -i 's|/usr/\(s\?bin\)/|$(PREFIX)/\1/|; s|/etc/imapmux|$(SYSCONF)|' $(DESTDIR)$(UNITDIR)/imapmux.service

deb: ## Build the Debian package in build/deb, and let lintian look at it, if that is installed
	deploy/make-deb $B/deb
	! command -v lintian >/dev/null || \
	  lintian --allow-root --fail-on error,warning --tag-display-limit 0 $B/deb/imapmux_$(VERSION)_*.changes

deb-test: deb $B/bench/store ## Boot an empty Debian (kept in DEB_CACHE; as root), install, try, upgrade and purge the package there
	$(PYTEST) tests/deploy/in_chroot.py

quick-start-test: ## Do what docs/quick-start.md says, word for word, in the same empty Debian (as root), and tell how long it takes
	$(PYTEST) tests/deploy/in_quick_start.py

container-test: deb ## Carry out the Containerfile in the same empty Debian (as root, with the net): no engine is needed
	$(PYTEST) tests/deploy/in_container.py

clean: ## Remove the build folders
	rm -rf build build-asan build-tsan build-fuzz

help: ## Print this
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18

comma := ,
-include $(shell find $B -name '*.d' 2>/dev/null)

.PHONY: all deps cyrus demo test test-faults-a-h test-faults-i-o test-faults-p-z test-threads test-moves test-others asan tsan unit-tests fuzz fuzz-run fuzz-merge fuzz-merge-run bench bench-tools \
        bench-deps bench-quick soak lint layers install deb deb-test quick-start-test container-test clean help
.SECONDARY:
