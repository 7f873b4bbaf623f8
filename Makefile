# `make demo` trains and speaks on a fresh machine; `make test` runs everything that CI runs.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint format sanitize mutate clean

demo: .venv/.demo
	$(BIN)/python -m sniper.train

test: .venv/.test
	$(BIN)/python -m pytest -q

NATIVE = $$(git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' '*.inc')

lint: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(NATIVE)

format: .venv/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(NATIVE)

# Optional, some minutes: the CPU kernels' tests on a build with AddressSanitizer and UBSan.
sanitize: .venv/.test
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
	  $(BIN)/python -P -m pytest -q tests/ops/backends/test_cpu.py tests/ops/test_attention.py

# Optional, a quarter of an hour: breaks the CUDA sources in one place at a time; the tests must find each.
mutate: .venv/.test
	$(BIN)/python tests/cuda_shim/mutate.py

SOURCES := pyproject.toml setup.py CMakeLists.txt $(shell find csrc -type f)

.venv/.pip:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "python 3.11 or newer is needed, found " + sys.version)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	touch $@

.venv/.demo: .venv/.pip $(SOURCES)
	$(BIN)/python -m pip install --quiet --editable '.[demo]'
	touch $@

.venv/.test: .venv/.pip $(SOURCES)
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info runs data
