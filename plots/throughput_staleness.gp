# throughput_staleness.gp - what a placement is worth when it was learnt on earlier batches
# data: batches between refreshes, then one column per phase, gate, placement and what it learnt on: gain over
# experts in order, per cent, without the moving of weights
set loadpath '.' 'plots'
load 'style.gp'

set title 'Gain of a placement that ages' . subtitle
set logscale x 2
set xlabel 'batches between refreshes'
set ylabel 'tokens/s gained over experts in order, %'
plot 0 with lines linestyle 101 title 'experts in order', \
     for [i=2:*] data using 1:i with linespoints title columnheader(i)
