seq 1000 | sort | tail
