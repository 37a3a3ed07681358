# bias_rate.gp - where a bias rule settles, against its rate; bars = its swing from batch to batch
# data: rate, then per batch size two columns: mean and standard deviation of MaxVio over the second
# half of the batches
set loadpath '.' 'plots'
load 'style.gp'

set title 'Settled imbalance against the bias rate' . subtitle
set xlabel 'bias rate'
set ylabel 'MaxVio within a batch, second half'
set logscale x
set format x '%g'
stats data using 1 every ::1 nooutput
set xrange [STATS_min/1.6:STATS_max*1.6]
set yrange [0:*]
set bars 0.6
set key noautotitle
plot for [i=2:*:2] data using 1:i:i+1 with yerrorbars linetype i/2 dashtype 1 linewidth 1, \
     for [i=2:*:2] data using 1:i with linespoints linetype i/2 title columnheader(i)
