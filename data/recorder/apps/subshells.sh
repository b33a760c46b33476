f() { local a=$1; ( echo "$a" ); }
for i in 1 2 3 4 5; do
  v=$(f $i | { read x; echo "${x}0"; })
  [ "$v" = "${i}0" ] || exit 1
done
/t/true_s & /t/true_s & wait
