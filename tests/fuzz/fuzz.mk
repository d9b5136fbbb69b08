# SPDX-License-Identifier: GPL-2.0-only
# The fuzzers: libFuzzer's programs with VARIANT=fuzz and clang, else programs that run the inputs they are given.

FUZZ_SECONDS ?= 60
FUZZERS      := $(patsubst %.c,$(B)/%,$(wildcard tests/fuzz/fuzz_*.c))
FUZZ_MAIN    := $(if $(filter fuzz,$(VARIANT)),,$(O)/tests/fuzz/replay.o)
# Also within a B of the command line, which the variant's make would get as it is.
FUZZ_DIR     := $(if $(filter command%,$(origin B)),$(B),build)/fuzz
FUZZ_MAKE    := $(MAKE) VARIANT=fuzz CC=clang B=$(FUZZ_DIR)

$(B)/tests/fuzz/%: $(O)/tests/fuzz/%.o $(FUZZ_MAIN) $(B)/libcriu-vm.a
	$(call say,LD,$@)
	$(Q)mkdir -p $(@D) && $(CC) $(LDFLAGS_ALL) $(if $(FUZZ_MAIN),,-fsanitize=fuzzer) $(LDFLAGS) -o $@ $^ $(LDLIBS)

fuzzers: $(FUZZERS)

fuzz: ## each fuzzer for FUZZ_SECONDS (60); what it finds is kept in build/fuzz/found
	$(Q)tests/deps.sh fuzz
	$(Q)$(FUZZ_MAKE) fuzzers
	$(Q)python3 -B tests/fuzz/run.py --build $(FUZZ_DIR) --seconds $(FUZZ_SECONDS)

.PHONY: fuzz fuzzers
