i=0
while [ $i -lt 8 ]; do
  x=$(/t/true_s; echo $i)
  (/t/true_s)
  i=$((i+1))
done
