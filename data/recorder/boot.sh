#!/bin/bash
# boot.sh KERNEL VCPUS RUNS OUTDIR: run.sh with the programs that the run lists name; waits; then merges into OUTDIR/out
cd "$(dirname "$0")/.."
HP=""; for p in /usr/bin/{sqlite3,perl,xz,true} /bin/{bash,dash}; do HP="$HP --host-program $p"; done
tools/run.sh $1 $2 $3 $4 $HP
grep -q ALLDONE $4/serial.log && python3 tools/merge.py $4/disk.img $4/out $2
