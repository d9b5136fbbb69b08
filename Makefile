# SPDX-License-Identifier: GPL-2.0-only
# One makefile for the whole house. `make help` lists the targets; V=1 shows the commands.
# A variant builds into a folder of its own: make VARIANT=asan, make VARIANT=tsan.

MAKEFLAGS += --no-builtin-rules --no-print-directory
.SUFFIXES:
.DEFAULT_GOAL := all
.DELETE_ON_ERROR:

VARIANT ?=
B       ?= build$(if $(VARIANT),/$(VARIANT))
O       := $(B)/obj
Q       := $(if $(V),,@)
say      = $(if $(V),,@printf '  %-7s %s\n' $(1) $(2))

PREFIX  ?= /usr/local
DESTDIR ?=

CC      := gcc
OPT     ?= -O2 -g
WARN    := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla
SAN_asan := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
SAN_tsan := -fsanitize=thread -fno-omit-frame-pointer
# NULL + 0, which clang counts as an overflow, is how a loop over an empty array begins.
SAN_fuzz := -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize=pointer-overflow -fno-sanitize-recover=undefined -fno-omit-frame-pointer
# Set here and added to, so that a user's own flags on the command line come last.
CPPFLAGS_ALL := -D_GNU_SOURCE -I. -I$(O)
CFLAGS_ALL   := -std=gnu17 $(OPT) $(WARN) -isystem /usr/include/libnl3 $(SAN_$(VARIANT)) -pthread
LDFLAGS_ALL  := $(SAN_$(VARIANT)) -pthread
LDLIBS       := -lcompel -luring -lprotobuf-c -ljansson -lxxhash -lzstd -lblkid -lsystemd -lgnutls -lnl-route-3 -lnl-3 -lm

ROOMS    := util mm images wire qemu pvmem lazy-pages criu-vm
PROTOS   := $(wildcard images/*.proto wire/*.proto)
GEN      := $(PROTOS:%.proto=$(O)/%.pb-c.c)
SRCS     := $(filter-out criu-vm/main.c,$(wildcard $(ROOMS:=/*.c)))
OBJS     := $(SRCS:%.c=$(O)/%.o) $(GEN:.c=.o)
UNIT     := $(patsubst %.c,$(B)/%,$(wildcard tests/unit/test_*.c))
PLATFORM := $(patsubst %.c,$(B)/%,$(wildcard tests/platform/*.c))
FAULTY   := $(patsubst %.c,$(B)/%,$(wildcard tests/faulty/*.c))
SCRIPTS  := $(shell git ls-files -co --exclude-standard '*.sh' .ci/run 2>/dev/null)

all: $(B)/criu-vm ## build build/criu-vm

$(B)/criu-vm: $(O)/criu-vm/main.o $(B)/libcriu-vm.a
	$(call say,LD,$@)
	$(Q)$(CC) $(LDFLAGS_ALL) $(LDFLAGS) -o $@ $^ $(LDLIBS)

$(B)/libcriu-vm.a: $(OBJS)
	$(call say,AR,$@)
	$(Q)rm -f $@ && ar rcs $@ $^

$(O)/%.o: %.c | $(GEN)
	$(call say,CC,$<)
	$(Q)mkdir -p $(@D) && $(CC) $(CPPFLAGS_ALL) $(CPPFLAGS) $(CFLAGS_ALL) $(CFLAGS) -MMD -MP -c -o $@ $<

$(O)/%.o: $(O)/%.c
	$(call say,CC,$<)
	$(Q)mkdir -p $(@D) && $(CC) $(CPPFLAGS_ALL) $(CPPFLAGS) $(CFLAGS_ALL) $(CFLAGS) -MMD -MP -c -o $@ $<

# libcompel's headers include one another as if their folder were a root.
$(O)/mm/plant.o: CPPFLAGS_ALL += -I/usr/include/compel

$(O)/%.pb-c.c: %.proto
	$(call say,PROTOC,$<)
	$(Q)mkdir -p $(@D) && protoc-c --c_out=$(O) $<

$(B)/tests/unit/%: $(O)/tests/unit/%.o $(B)/libcriu-vm.a
	$(call say,LD,$@)
	$(Q)mkdir -p $(@D) && $(CC) $(LDFLAGS_ALL) $(LDFLAGS) -o $@ $^ -lcheck_pic -lsubunit -lrt $(LDLIBS)

$(B)/tests/platform/%: $(O)/tests/platform/%.o $(B)/libcriu-vm.a
	$(call say,LD,$@)
	$(Q)mkdir -p $(@D) && $(CC) $(LDFLAGS_ALL) $(LDFLAGS) -o $@ $^ $(LDLIBS)

$(B)/tests/faulty/%: $(O)/tests/faulty/%.o
	$(call say,LD,$@)
	$(Q)mkdir -p $(@D) && $(CC) $(LDFLAGS_ALL) $(LDFLAGS) -o $@ $^ -lfuse3 -luring

.SECONDARY:
-include $(shell find $(O) -name '*.d' 2>/dev/null)

unit: $(UNIT)
platform: $(PLATFORM)
faulty: $(FAULTY)

include tests/zdtm/guests.mk
include tests/fuzz/fuzz.mk
include tests/nested/nested.mk
include bench/bench.mk

# Unless it is said how many.
JOBS = $(if $(filter -j% --jobserver%,$(MAKEFLAGS)),,-j$(shell nproc))

# Packages first, and the building in a make of its own: it asks tools that come with them.
deps: ## install the Debian packages that building and testing need, or say which
	$(Q)tests/deps.sh

demo: deps ## a Linux VM is dumped, and restored into a quarter of its memory
	$(Q)$(MAKE) $(JOBS) all guests
	$(Q)python3 -B tests/demo.py --build $(B)

check: deps ## build and run the tests
	$(Q)$(MAKE) $(JOBS) all unit platform faulty guests
	$(Q)$(MAKE) $(JOBS) VARIANT=asan all unit fuzzers
	$(Q)python3 -B tests/check.py docs unit platform misuse now checkpoints compat life migration zdtm unit:asan fuzz:asan zdtm:asan

asan: deps ## build with the address and undefined-behaviour sanitizers; run the unit tests and a restore
	$(Q)$(MAKE) $(JOBS) all guests
	$(Q)$(MAKE) $(JOBS) VARIANT=asan all unit
	$(Q)python3 -B tests/check.py --long unit:asan zdtm:asan

tsan: deps ## build with the thread sanitizer; run the unit tests
	$(Q)$(MAKE) $(JOBS) VARIANT=tsan unit
	$(Q)python3 -B tests/check.py --long unit:tsan

damage: deps ## checkpoints with thousands of flipped bits and truncations: verify and restore find them all
	$(Q)$(MAKE) $(JOBS) all guests
	$(Q)python3 -B tests/checkpoints.py --build $(B) --places 2000 -k damage

zdtm: deps ## all guests through all flavours
	$(Q)$(MAKE) $(JOBS) all guests
	$(Q)python3 -B tests/zdtm/zdtm.py run

life: deps ## all of what becomes of a VM when a part of it fails
	$(Q)$(MAKE) $(JOBS) all faulty guests
	$(Q)python3 -B tests/life.py --build $(B) --long

migration: deps ## every fault at every stage of a migration, the wire cut anywhere, twenty moves to and fro
	$(Q)$(MAKE) $(JOBS) all guests
	$(Q)python3 -B tests/migration.py --build $(B) --long

bench-paging: ## memory that does not fit, beside the kernel's swap and the disk itself; takes hours
	$(Q)tests/deps.sh bench
	$(Q)$(MAKE) $(JOBS) all guests $(BENCH_PAGING)
	$(Q)$(MAKE) $(JOBS) B=$(B)/no-drain CPPFLAGS=-DBENCH_NO_DRAIN all
	$(Q)python3 -B bench/paging.py --build $(B)

soak: deps ## an hour of verifying guests under random budgets and pressure
	$(Q)$(MAKE) $(JOBS) all guests
	$(Q)python3 -B tests/soak.py --build $(B)

lint: ## clang-tidy, cppcheck, shellcheck
	$(Q)tests/deps.sh lint
	$(Q)$(MAKE) $(JOBS) $(GEN)
	$(Q)tests/lint.sh

install: all ## install into DESTDIR and PREFIX
	$(Q)install -D -m 0755 $(B)/criu-vm $(DESTDIR)$(PREFIX)/sbin/criu-vm
	$(Q)install -D -m 0644 docs/criu-vm.1 $(DESTDIR)$(PREFIX)/share/man/man1/criu-vm.1
	$(Q)install -D -m 0644 completion/criu-vm.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/criu-vm
	$(Q)install -D -m 0644 dist/criu-vm-lazy-pages.service $(DESTDIR)$(PREFIX)/lib/systemd/system/criu-vm-lazy-pages.service
	$(Q)sed -i 's|/usr/local/|$(PREFIX)/|' $(DESTDIR)$(PREFIX)/lib/systemd/system/criu-vm-lazy-pages.service

clean: ## remove everything built
	$(Q)rm -rf build

help: ## list the targets
	$(Q)grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /\1\t/' | while IFS='	' read -r t d; do printf '  %-10s %s\n' "$$t" "$$d"; done

.PHONY: all deps demo check damage asan tsan zdtm migration soak bench-paging lint install clean help unit platform faulty life
