#!/bin/sh
# record.sh RUNS OUT: record each line of RUNS in a Xen PV guest that has xentrace (dom0); append tar archives to OUT.
# A line of RUNS: directory workload n iterations [command args...]      (see wl.c; command only for cmd* workloads)
# OUT gets: boot/ (what merge.py needs of this boot), then a directory per recording:
#   cpuN.raw = pages of trace_pipe_raw, statsN = per_cpu/cpuN/stats, xen.bin = xentrace's output, out = of wl
RUNS=$1 OUT=$2
T=${T:-/sys/kernel/tracing} WL=${WL:-./wl} FUNCTIONS=${FUNCTIONS:-./functions}
XENTRACE=${XENTRACE:-xentrace} XEN_PAGES=${XEN_PAGES:-16384} RING_KB=${RING_KB:-262144}
W=$(mktemp -d /tmp/record.XXXXXX); FUNCTIONS=$(realpath $FUNCTIONS) WL=$(realpath $WL) RUNS=$(realpath $RUNS)
exec 9>$OUT; cd $W || exit 1

echo 0 >/proc/sys/kernel/randomize_va_space    # addresses do not change from run to run
echo 0 >/proc/sys/kernel/kptr_restrict         # kallsyms has addresses

# ftrace: the same for all recordings
echo 0 >$T/tracing_on; echo nop >$T/current_tracer
echo x86-tsc >$T/trace_clock                   # Xen's records have the TSC, too
echo $RING_KB >$T/buffer_size_kb               # per CPU
echo >$T/set_ftrace_filter
for f in $(cat $FUNCTIONS); do echo $f >>$T/set_ftrace_filter 2>/dev/null || echo $f >>absent; done
for e in xen tlb exceptions; do echo 1 >$T/events/$e/enable; done
for e in sched_process_fork sched_process_exec sched_process_exit sched_switch; do echo 1 >$T/events/sched/$e/enable; done
echo function >$T/current_tracer

mkdir boot
cp /proc/kallsyms /proc/cmdline /proc/cpuinfo boot/; dmesg >boot/dmesg; uname -a >boot/uname
[ -f absent ] && mv absent boot/functions_absent
cat $T/set_ftrace_filter >boot/set_ftrace_filter; cat $T/set_event >boot/set_event
cat $T/trace_clock $T/current_tracer >boot/tracer; cat $T/events/header_page >boot/header_page
for f in $T/events/xen/*/format $T/events/tlb/*/format $T/events/exceptions/*/format $T/events/sched/*/format $T/events/ftrace/*/format; do
  echo "== $f"; cat $f; done >boot/formats
tar cf - boot >&9; rm -r boot

NCPU=$(grep -c ^processor /proc/cpuinfo)
while read dir workload n iterations cmd; do
  echo "RUN $dir $workload $n $iterations $cmd"
  mkdir $dir; echo "$dir $workload $n $iterations $cmd" >$dir/run
  echo 0 >$T/tracing_on; echo >$T/trace        # an empty ring buffer
  # -D: discard what is in the buffers; -s: look at them once a minute, that is not during the workload
  $XENTRACE -D -e 0x0020f000 -S $XEN_PAGES -s 60000 $dir/xen.bin 2>$dir/xentrace.err & X=$!
  sleep 2
  eval "$WL both $workload $n $iterations $cmd" >$dir/out 2>&1 </dev/null; echo "status $?" >>$dir/out
  echo 0 >$T/tracing_on
  kill -INT $X; wait $X                        # it writes out the rest
  c=0
  while [ $c -lt $NCPU ]; do
    cat $T/per_cpu/cpu$c/stats >$dir/stats$c
    $WL dump $c $dir/cpu$c.raw >>$dir/dumped
    c=$((c+1))
  done
  tail -n 2 $dir/out; grep -hE 'overrun|dropped' $dir/stats? | sort | uniq -c | tr '\n' ' '; ls -l $dir | awk '{print $5,$9}' | tr '\n' ' '; echo
  tar cf - $dir >&9; rm -r $dir
done <$RUNS
exec 9>&-
