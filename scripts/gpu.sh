#!/usr/bin/env bash
# All that needs a GPU, in one call of under ten minutes: tests, compute-sanitizer where it is there, benches.
#   scripts/gpu.sh          PYTHON=... names the python (default: .venv's, else python3)
# Without a GPU it does what goes without one, and says what it skipped. Exit code 1 where something failed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
failed=0

say() { printf '== %-12s %s\n' "$1" "$2"; }

# part NAME SECONDS COMMAND...: run it, stop it after so many seconds, and say how it ended
part() {
    local name=$1 limit=$2 started=$SECONDS code
    shift 2
    say "$name" "$* (at most $limit s)"
    timeout "$limit" "$@"
    code=$?
    case $code in
        0) say "$name" "passed in $((SECONDS - started)) s" ;;
        124) say "$name" "stopped after $limit s"; failed=1 ;;
        *) say "$name" "FAILED with exit code $code"; failed=1 ;;
    esac
}

has() { "$python" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$1') is None)"; }

if has triton; then
    part compile 120 "$python" -W ignore scripts/compile_kernels.py
else
    say compile "skipped: Triton is not installed for $python"
fi

if ! "$python" -c "import torch, sys; sys.exit(not torch.cuda.is_available())" 2>/dev/null; then
    if has triton; then
        part interpreted 400 "$python" -W ignore tests/peers/gpu_program.py --few
    fi
    say tests "skipped: torch finds no GPU that it can use here"
    say sanitizer "skipped: no GPU"
    say benches "skipped: no GPU"
    exit $failed
fi

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || true
if has triton; then
    part kernels 100 "$python" -W ignore tests/peers/gpu_program.py --cuda
    if command -v compute-sanitizer > /dev/null; then
        part sanitizer 90 compute-sanitizer --error-exitcode 9 \
            "$python" -W ignore tests/peers/gpu_program.py --cuda --few
    else
        say sanitizer "skipped: compute-sanitizer is not installed"
    fi
else
    say kernels "skipped: Triton is not installed; packs train with plain torch"
fi
if has pytest; then
    part tests 90 "$python" -m pytest -q -p no:cacheprovider -n 0 -k gpu tests/training/ensemble/test_fit_many.py
else
    say tests "skipped: pytest is not installed for $python"
fi
part step 60 "$python" scripts/bench_gpu.py --part step
part crossover 60 "$python" scripts/bench_gpu.py --part crossover
part processes 60 "$python" scripts/bench_gpu.py --part processes
part extraction 40 "$python" scripts/bench_gpu.py --part extraction
part packing 60 "$python" scripts/bench_packing.py --device cuda --repeats 1
exit $failed
