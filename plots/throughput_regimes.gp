# throughput_regimes.gp - what skew does to the time of the experts, against tokens per expert
# data: tokens per expert, then one column per gate and placement: time / time of a balanced load
set loadpath '.' 'plots'
load 'style.gp'

set title 'Cost of skew' . subtitle
set logscale x 2
set xlabel 'tokens per expert and batch'
set ylabel 'time of the experts / time of a balanced load'
set yrange [0:*]
set format x '%.4g'
plot 1 with lines linestyle 101 title 'balanced', \
     for [i=2:*] data using 1:i with linespoints title columnheader(i)
