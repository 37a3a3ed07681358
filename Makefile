# Steelyard: builds everything under build/. `make help` lists the targets.
#   MODE=release|debug   SAN=address,undefined   CC=gcc|clang   V=1 shows the commands
MAKEFLAGS += -r
.DEFAULT_GOAL := all
CC      ?= cc
ifeq ($(origin CC),default)
CC      := cc
endif
MODE    ?= release
SAN     ?=
PREFIX  ?= /usr/local
B       := build
comma   := ,
O       := $(B)/$(MODE)$(if $(SAN),-$(subst $(comma),-,$(SAN)))
Q       := $(if $(V),,@)
FOLDERS := base router engine engine/kernels traces sim analysis plots
ARCH    := $(shell $(CC) -dumpmachine | cut -d- -f1)

WARN    := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wconversion -Wno-sign-conversion -Wvla
# -ffp-contract=off: the same bits from router, sim and analysis whatever the CPU has (laws 1 and 3)
CFLAGS_ := -std=c11 -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -I. -I$(B)/embed $(WARN) -fPIC -ffp-contract=off -fno-math-errno -pthread -g
CFLAGS_ += $(if $(FUZZ),-fsanitize=fuzzer-no-link) $(if $(filter debug,$(MODE)),-O1,-O2) $(if $(SAN),-fsanitize=$(SAN) -fno-sanitize-recover=all -fno-omit-frame-pointer) $(CFLAGS)
LIBS    := -lgsl -lgslcblas -lsqlite3 -lcjson -lpcre2-8 -lutf8proc -lz -lm -pthread $(if $(SAN),-fsanitize=$(SAN)) $(LDFLAGS)

# SIMD levels are files of their own, each with its own flags; chosen at run time (kernels.c).
# Contraction is allowed there: a level fixes its own order of operations.
X86     := x86_64 amd64
SIMD    := $(if $(filter $(X86),$(ARCH)),avx2 avx512 avx512bf16 amx,$(if $(filter aarch64,$(ARCH)),neon))
FLAGS_avx2       := -mavx2 -mfma -mf16c
FLAGS_avx512     := -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c
FLAGS_avx512bf16 := $(FLAGS_avx512) -mavx512bf16
FLAGS_amx        := $(FLAGS_avx512bf16) -mamx-tile -mamx-bf16
FLAGS_neon       :=
ALL_SIMD := avx2 avx512 avx512bf16 amx neon

SOURCES := $(wildcard $(addsuffix /*.c,$(FOLDERS)))
SOURCES := $(filter-out $(foreach s,$(filter-out $(SIMD),$(ALL_SIMD)),%_$(s).c %/$(s).c),$(SOURCES))
EMBED   := $(wildcard traces/*.sql traces/queries/*.sql plots/*.gp plots/*.html plots/*.css plots/*.js)
EMBED_C := $(patsubst %,$(B)/embed/%.c,$(EMBED))
OBJECTS := $(SOURCES:%.c=$(O)/%.o) $(EMBED_C:$(B)/%.c=$(O)/%.o)
CLI     := $(patsubst %.c,$(O)/%.o,$(wildcard cli/*.c))
TESTS   := $(wildcard tests/test_*.c)
TEST_O  := $(TESTS:%.c=$(O)/%.o) $(O)/tests/main.o $(patsubst %.c,$(O)/%.o,$(wildcard tests/support_*.c))
BENCH_O := $(patsubst %.c,$(O)/%.o,$(wildcard tests/bench/*.c) tests/support_logits.c)
FUZZERS := $(patsubst tests/fuzz/fuzz_%.c,%,$(wildcard tests/fuzz/fuzz_*.c))
LIB     := $(O)/libsteelyard.a

# MPI is optional: where mpicc is (MPICC= does without), a module that the program loads under mpirun
MPICC   ?= $(shell command -v mpicc 2>/dev/null)
MODULES := $(if $(SAN),,$(B)/steelyard.so $(if $(MPICC),$(O)/steelyard-mpi.so $(B)/steelyard-mpi.so))

all: $(B)/steelyard $(MODULES) ## the program: build/steelyard, its SQLite extension, its MPI module

# replaced whenever it differs: another mode may have been built in between
$(B)/steelyard: $(O)/steelyard .FORCE ; $(Q)cmp -s $< $@ || { cp $< $@.new && mv $@.new $@; }
.FORCE:
$(O)/steelyard: $(CLI) $(LIB) ; @echo "  LD  $@"; $(CC) -o $@ $(CLI) $(LIB) $(LIBS)
$(LIB): $(OBJECTS) ; @echo "  AR  $@"; rm -f $@ && ar rcs $@ $(OBJECTS)

# router_score for any SQLite shell: SQLite comes from the host, so nothing of traces/db.c is in it
EXT     := traces/extension/steelyard.c traces/score_table.c traces/score_plan.c
EXT_O   := $(filter $(O)/router/%,$(OBJECTS)) $(O)/base/err.o $(O)/base/str.o
$(B)/steelyard.so: $(EXT) $(wildcard traces/score_*.h base/half.h) $(EXT_O)
	@echo "  LD  $@"; $(CC) $(CFLAGS_) -DSTEELYARD_EXTENSION -shared -Wl,-Bsymbolic -Wl,-z,defs -o $@.new $(EXT) $(EXT_O) -lm && mv $@.new $@

$(B)/steelyard-mpi.so: $(O)/steelyard-mpi.so .FORCE ; $(Q)cmp -s $< $@ || { cp $< $@.new && mv $@.new $@; }
$(O)/steelyard-mpi.so: cli/mpi/module.c cli/mpi/module.h $(O)/base/str.o $(O)/base/err.o
	@echo "  LD  $@"; $(MPICC) $(CFLAGS_) -shared -Wl,-Bsymbolic -o $@.new $(filter %.c %.o,$^) && mv $@.new $@

# every object also depends on the embedded texts' list and on the flags of this Makefile
$(O)/%.o: %.c Makefile | $(B)/embed/embed.h
	@mkdir -p $(@D); echo "  CC  $<"
	$(Q)$(CC) $(CFLAGS_) $(if $(filter router/%,$*),-O3 -fno-trapping-math) $(foreach s,$(SIMD),$(if $(filter %_$(s) %/$(s),$*),$(FLAGS_$(s)) -O3 $(if $(filter engine/%,$*),-ffp-contract=fast))) -MMD -MP -c $< -o $@
$(O)/embed/%.o: $(B)/embed/%.c ; @mkdir -p $(@D); $(CC) -std=c11 -fPIC -c $< -o $@

# texts that the program carries: schema, queries, plot templates, report parts
sym = embed_$(subst .,_,$(subst -,_,$(subst /,_,$(1))))
$(B)/embed/%.c: % Makefile
	@mkdir -p $(@D)
	$(Q){ echo 'extern const char $(call sym,$*)[]; const char $(call sym,$*)[] ='; \
	  sed -e 's/\\/\\\\/g' -e 's/"/\\"/g' -e 's/^/"/' -e 's/$$/\\n"/' $<; echo '"";'; } > $@
$(B)/embed/embed.h: $(EMBED) Makefile
	@mkdir -p $(@D)
	$(Q){ echo '/* generated: the texts that the program carries */'; \
	  $(foreach e,$(EMBED),echo 'extern const char $(call sym,$(e))[];';) } > $@

# ---- tests
$(O)/tests/list.h: $(TESTS) Makefile
	@mkdir -p $(@D); \
	{ $(foreach t,$(sort $(TESTS:tests/test_%.c=%)),echo 'X($(t))';) } > $@
$(O)/tests/%.o: CFLAGS_ += -Wno-missing-prototypes
$(O)/tests/main.o: CFLAGS_ += -I$(O)/tests
$(O)/tests/main.o: $(O)/tests/list.h
$(O)/run-tests: $(TEST_O) $(LIB) ; @echo "  LD  $@"; $(CC) -o $@ $(TEST_O) $(LIB) $(LIBS) -lcmocka
check: $(O)/run-tests $(O)/steelyard $(MODULES) $(if $(T),,corpora) ## build and run the tests (T=name runs one group)
	$(Q)STEELYARD=$(O)/steelyard $(O)/run-tests $(T)
corpora: $(FUZZERS:%=$(O)/replay-%) ## run every fuzz target over its stored corpus
	$(Q)for f in $(FUZZERS); do $(O)/replay-$$f tests/fuzz/corpus/$$f || exit 1; done
$(O)/replay-%: $(O)/tests/fuzz/fuzz_%.o $(O)/tests/fuzz/replay.o $(LIB) ; @echo "  LD  $@"; $(CC) -o $@ $^ $(LIBS)
# libFuzzer needs clang and its runtime (Debian: clang libclang-rt-14-dev)
fuzz: ## build the libFuzzer targets in build/fuzz-address-undefined
	$(Q)$(MAKE) --no-print-directory CC=clang FUZZ=1 MODE=fuzz SAN=address,undefined fuzzers
fuzzers: $(FUZZERS:%=$(O)/fuzz-%)
$(O)/fuzz-%: tests/fuzz/fuzz_%.c $(LIB) ; @echo "  LD  $@"; clang $(CFLAGS_) -Wno-missing-prototypes -fsanitize=fuzzer -o $@ $^ $(LIBS)
test: ## install what the tests need and run them all
	$(Q)sh tests/deps.sh libopenmpi-dev openmpi-bin
	$(Q)$(MAKE) --no-print-directory check
sanitize: ## the tests under AddressSanitizer and UBSan
	$(Q)$(MAKE) --no-print-directory SAN=address,undefined MODE=debug check

# ---- the rest
demo: deps ## the main job on the shipped models: figures and a report in build/demo
	$(Q)$(MAKE) --no-print-directory all
	$(Q)sh models/demo.sh
$(O)/bench: $(BENCH_O) $(LIB) ; @echo "  LD  $@"; $(CC) -o $@ $(BENCH_O) $(LIB) $(LIBS)
bench: $(O)/bench all ## benchmarks; SCENE=name runs one
	$(Q)$(O)/bench $(if $(SCENE),"$(SCENE)")
lint: $(B)/embed/embed.h ## layer arrows, headers alone, function length, format
	$(Q)sh tests/deps.sh clang-format git && sh tests/lint.sh "$(CC)" "$(CFLAGS_)"
format: ## put all sources into the house format
	$(Q)git ls-files '*.c' '*.h' | grep -v '^models/' | xargs clang-format -i
deps: ; $(Q)sh tests/deps.sh
install: all
	install -D $(B)/steelyard $(DESTDIR)$(PREFIX)/bin/steelyard
	$(if $(MPICC),install -D $(B)/steelyard-mpi.so $(DESTDIR)$(PREFIX)/lib/steelyard/steelyard-mpi.so)
clean: ; rm -rf $(B)
help: ; @grep -hE '^[a-z]+:.*##' Makefile | sed -e 's/:.*##/\t/' | expand -t 12

.PHONY: all check corpora fuzz test sanitize demo bench lint format deps install clean help
.SECONDARY:
-include $(OBJECTS:.o=.d) $(CLI:.o=.d) $(TEST_O:.o=.d) $(BENCH_O:.o=.d)
