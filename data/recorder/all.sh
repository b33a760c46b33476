#!/bin/bash
# all.sh: every boot of the delivery, one after the other
cd "$(dirname "$0")/.."
for r in 1 2; do for k in k61 k612; do
  for l in "1 list1" "2 list2" "1 list0" "2 list0s" "4 list4"; do
    set -- $l; o=runs/$k-$1-$2-r$r
    [ -d $o/out ] || tools/boot.sh $k $1 tools/lists/$2 $o >$o.log 2>&1
    echo "$o done $(date +%T) $(ls $o/out 2>/dev/null | wc -l)"
  done
done; done
