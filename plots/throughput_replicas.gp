# throughput_replicas.gp - what redundant experts are worth in tokens/s
# data: redundant experts, then one column per phase, gate and placement: gain over none of them, per cent
set loadpath '.' 'plots'
load 'style.gp'

set title 'Gain against redundant experts' . subtitle
set xlabel 'redundant experts'
set ylabel 'tokens/s gained, %'
plot 0 with lines linestyle 101 title 'no redundant experts', \
     for [i=2:*] data using 1:i with linespoints title columnheader(i)
