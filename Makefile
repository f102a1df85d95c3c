# Short targets; README, .ci/run and people use the same ones. Variables: MPI (mpich, openmpi or intel), VENV, PYTHON, RANKS.
PYTHON ?= python3
MPI ?= mpich
VENV ?= .venv$(if $(filter mpich,$(MPI)),,-$(MPI))
EXTRAS ?= dev
RANKS ?= 2
MPI_RANKS ?= 2 3 4
MINUTES ?= 30
SEED ?= 0
export PATH := $(abspath $(VENV))/bin:$(PATH)
# More ranks than cores, and root in a container, are fine for a try-out: Open MPI wants to be told.
export PRTE_MCA_rmaps_default_mapping_policy ?= :oversubscribe
export OMPI_ALLOW_RUN_AS_ROOT ?= 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM ?= 1
ifeq ($(MPI),intel)
export I_MPI_ROOT := $(abspath $(VENV))
export I_MPI_FABRICS ?= shm
endif

SOURCES := setup.py pyproject.toml CMakeLists.txt $(wildcard kernels/*/*.?pp kernels/include/*/*.hpp)

# Tests that start launchers and wait for them; the longest first, since each file runs beside others.
STARTING := tests/train/elastic/test_recover.py tests/train/test_script.py tests/train/elastic/test_places.py \
    tests/train/elastic/test_frozen.py tests/train/test_command.py tests/comm/diagnosis/test_stall.py tests/test_slurm.py \
    tests/comm/test_two_hosts.py tests/test_doctor.py tests/train/test_lock.py tests/comm/test_misuse.py \
    tests/comm/test_circle.py

# Tests of what calls the kernels, for `make asan`; of collectives only those in shared memory, on 3 threads.
CHECKED := tests/ops tests/compress tests/reduce tests/optim tests/nn/test_arguments.py tests/nn/test_sequence.py \
    tests/comm/wires/test_node.py tests/comm/test_collectives.py

.PHONY: train doctor test lint types unit mpi-test command-test pages-test docs slurm-test slurm-scripts dist asan big fuzz fuzz-inputs mutants mutants-kernels torture bench bench-mpis clean help

train: $(VENV)/run-$(MPI)  ## train the digits on 2 ranks
	mpirun -n $(RANKS) python -m hpcai.train

doctor: $(VENV)/run-$(MPI)  ## what MPI, launcher and memory can do here
	mpirun -n $(RANKS) python -m hpcai.doctor

test: lint types unit mpi-test command-test pages-test  ## everything that must be green

lint: $(VENV)/dev-$(MPI)
	ruff check .
	ruff format --check .

types: $(VENV)/dev-$(MPI)
	mypy

unit: $(VENV)/dev-$(MPI)
	pytest -n 2 $(STARTING:%=--ignore=%) --ignore=tests/test_pages.py

mpi-test: $(VENV)/dev-$(MPI)
	for n in $(MPI_RANKS); do mpirun -n $$n pytest || exit 1; done

command-test: $(VENV)/dev-$(MPI)
	pytest -n 2 --dist loadfile --no-loadscope-reorder $(STARTING)

pages-test: $(VENV)/dev-$(MPI)  ## run all code that README, docs and examples show
	pytest -n 2 tests/test_pages.py

docs: $(VENV)/docs-$(MPI)  ## the documentation, into build/docs; warnings are errors
	sphinx-build -W --keep-going -E -q -b html docs build/docs

slurm-test: $(VENV)/dev-$(MPI)  ## only the tests on a real Slurm, which is started for them (root, Debian's Slurm)
	pytest tests/test_slurm.py

slurm-scripts: $(VENV)/run-$(MPI)  ## write slurm/*.sbatch anew, after a change of hpcai/submit/script.py
	for name in train bench; do python -m hpcai.submit.script $$name > slurm/$$name.sbatch || exit 1; done

dist:  ## sdist and wheels into dist/, each tried in an empty environment (PYTHONS="python3.12 ..."; all that are here)
	$(PYTHON) -m tests.dist $(PYTHONS)

asan: $(VENV)/dev-$(MPI)  ## tests of what calls the kernels, on kernels with AddressSanitizer and UBSan, in a copy of the tree
	pip install -q 'nanobind>=2.4' 'cmake>=3.18' ninja
	cmake -G Ninja -S . -B build/asan/kernels -DHPCAI_SANITIZE=ON -DCMAKE_BUILD_TYPE=Release -DPython_EXECUTABLE="$$(command -v python)"
	cmake --build build/asan/kernels
	rm -rf build/asan/tree && mkdir build/asan/tree && cp -rp hpcai tests pyproject.toml build/asan/tree
	rm -f build/asan/tree/hpcai/_native*.so && cp build/asan/kernels/_native*.so build/asan/tree/hpcai
	cd build/asan/tree && LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so)" ASAN_OPTIONS=detect_leaks=0 \
	    UBSAN_OPTIONS=print_stacktrace=1 HPCAI_KERNELS=required pytest -n 2 --timeout 600 -k "not test_collectives or (node and -3])" $(CHECKED)

big: $(VENV)/dev-$(MPI)  ## more than 2**31 elements; wants 20 GiB of memory
	mpirun -n 2 pytest -m big --timeout 600

fuzz: $(VENV)/dev-$(MPI)  ## 160,000 random collectives, on 1 to 8 ranks
	for n in 1 2 3 4 5 6 7 8; do HPCAI_FUZZ=20000 HPCAI_FUZZ_SEED=$$n mpirun -n $$n pytest tests/comm/test_fuzz.py || exit 1; done

fuzz-inputs: $(VENV)/dev-$(MPI)  ## 20,000 damaged and odd files of data, options and checkpoints, and batch scripts (MINUTES, SEED)
	python -m tests.fuzz_inputs --minutes $(MINUTES) --seed $(SEED)

mutants: $(VENV)/dev-$(MPI)  ## 400 faults planted one by one, each against the tests of its room; an hour or more (SEED)
	pip install -q coverage
	python -m tests.mutants --workers 2 --seed $(SEED)

mutants-kernels: $(VENV)/dev-$(MPI)  ## faults planted by hand in the C++ kernels; half an hour
	pip install -q nanobind cmake
	python -m tests.mutants.kernels

torture: $(VENV)/dev-$(MPI)  ## 1,000 ranks killed and 200 frozen at random instants (MPI=openmpi), 1,000 kills while checkpoints are written
	$(if $(filter openmpi,$(MPI)),python -m tests.torture --kills 1000)
	$(if $(filter openmpi,$(MPI)),python -m tests.torture --freeze 200)
	HPCAI_TORTURE=1000 pytest tests/checkpoint/test_format.py -k kill --timeout 1800

bench: $(VENV)/dev-$(MPI)  ## step time against PyTorch DDP, pipelines, scaling, all-reduce against MPIs and Gloo (installs torch)
	pip install -q torch==2.13.0
	mpirun -n 2 python -m bench.step
	mpirun -n 2 python -m bench.step --model gpt
	mpirun -n 4 python -m bench.pipeline
	mpirun -n 2 python -m bench.scaling
	mpirun -n 2 python -m bench.allreduce --against mpi,gloo
	$(MAKE) bench-mpis
	python -m bench.allreduce --against best

bench-mpis: $(VENV)/bin/python  ## an environment for each MPI that bench.rivals compares with, in build/mpis (Intel's only for benches)
	for pair in openmpi:openmpi mpich:mpich intel:impi-rt; do \
	    $(PYTHON) -m venv build/mpis/$${pair%:*} && build/mpis/$${pair%:*}/bin/pip install -q $${pair#*:} \
	        $$(python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"])') || exit 1; \
	done

clean:
	rm -rf $(VENV) build *.egg-info hpcai/_native*.so

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/run-$(MPI): $(VENV)/bin/python $(SOURCES)
	pip install -q -e '.[$(MPI)]'
	touch $@

$(VENV)/dev-$(MPI): $(VENV)/bin/python $(SOURCES)
	pip install -q -e '.[$(MPI),$(EXTRAS)]'
	touch $@ $(VENV)/run-$(MPI)

$(VENV)/docs-$(MPI): $(VENV)/run-$(MPI) docs/requirements.txt
	pip install -q -r docs/requirements.txt
	touch $@
