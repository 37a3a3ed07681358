# bias_trajectory.gp - MaxVio of each balance batch while a bias rule is at work, one line per rate
# data: batch, then per variant MaxVio within the batch (mean over layers)
set loadpath '.' 'plots'
load 'style.gp'

set title 'Settling of the correction bias' . subtitle
set xlabel 'balance batch'
set ylabel 'MaxVio within the batch'
set autoscale xfix
set yrange [0:*]
plot for [i=2:*] data using 1:i with lines title columnheader(i)
