# `make demo` trains and speaks on a fresh machine; `make test` runs everything that CI runs.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test campaign lint format bench gpu-compat wheel wheels constraints sanitize mutate clean

demo: .venv/.demo
	$(BIN)/python -m sniper.train

test: .venv/.dev
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

# Every case of tests/campaign, minutes; `make test` runs a sample. As root also those with full disks.
campaign: .venv/.dev
	$(BIN)/python -m pytest -q -n 2 --dist load tests/campaign --campaign

NATIVE = $$(git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' '*.inc')

# What .pre-commit-config.yaml has on a commit, on everything: ruff, clang-format, pyright. Formatters
# write; that they had to is a failure.
lint: .venv/.dev
	$(BIN)/pre-commit run --all-files --show-diff-on-failure

format: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(NATIVE)

# Microbenchmarks, about two minutes; bench/README.md says how to compare two runs.
bench: .venv/.dev
	$(BIN)/python -m pytest bench --benchmark-only

# Optional, an hour on two cores: every Triton kernel, compiled by every Triton from 3.6 on, for
# every GPU; needs none. VERSIONS="3.6.0 newest" takes some.
gpu-compat: .venv/.dev
	$(BIN)/python bench/kernel_report.py --jobs $$(nproc)
	$(BIN)/python bench/gpu_compat.py --reported $(if $(VERSIONS),--versions $(VERSIONS))

# An sdist and, built from it, a wheel for this machine, into dist/.
wheel: .venv/.dev
	$(BIN)/python -m build --outdir dist

# Wheels for every supported Python, as they are published; needs Docker.
wheels: .venv/.dev
	$(BIN)/python -m pip install --quiet cibuildwheel
	$(BIN)/cibuildwheel --platform linux --output-dir dist

# Writes the pins of constraints.txt anew from what is installed here, below its comments.
constraints: .venv/.dev
	$(BIN)/python -m pip freeze --exclude-editable | grep -vi '^sniper-tts' \
	  | sed -E 's/\+[a-z0-9.]+$$//; s/^triton==/triton<=/' > .venv/pins
	sed -n '/^#/p' constraints.txt | cat - .venv/pins > .venv/constraints.txt
	cp .venv/constraints.txt constraints.txt

# Optional, some minutes: the CPU kernels' tests on a build with AddressSanitizer and UBSan.
sanitize: .venv/.dev
	$(BIN)/python -m pip install --quiet pybind11 cmake ninja
	$(BIN)/cmake -G Ninja -S . -B build/sanitize -DCMAKE_BUILD_TYPE=RelWithDebInfo \
	  -DSNIPER_SANITIZE=ON -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
	  -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python \
	  -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir)
	$(BIN)/cmake --build build/sanitize
	rm -rf build/sanitized && mkdir -p build/sanitized/sniper
	ln -s $$(ls -d $(CURDIR)/sniper/* | grep -v '/_C\.') build/sanitized/sniper/
	ln -s $(CURDIR)/build/sanitize/_C*.so build/sanitized/sniper/
	LD_PRELOAD=$$(g++ -print-file-name=libasan.so):$$(g++ -print-file-name=libubsan.so) \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1 PYTHONPATH=build/sanitized \
	  $(BIN)/python -P -m pytest -q tests/ops/backends/test_cpu.py tests/ops/test_attention.py tests/ops/test_add_norm.py \
	  tests/ops/test_depthwise_op.py tests/ops/test_relative_attention.py tests/optim/test_adam.py

# Optional, a quarter of an hour: breaks the CUDA sources in one place at a time; the tests must find each.
mutate: .venv/.dev
	$(BIN)/python tests/cuda_shim/mutate.py

# Its classes, which tests put masks into, need little of what its requirements ask for.
ESPNET := espnet==202511 typeguard==4.6.1

SOURCES := pyproject.toml constraints.txt setup.py CMakeLists.txt $(shell find csrc -type f)

.venv/.pip:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "python 3.11 or newer is needed, found " + sys.version)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	touch $@

.venv/.demo: .venv/.pip $(SOURCES)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo]'
	touch $@

.venv/.dev: .venv/.pip $(SOURCES)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps $(ESPNET)
	touch $@

clean:
	rm -rf .venv build dist *.egg-info runs data
