# batch_size.gp - MaxVio within a balance batch against its size, one line per variant
# data: tokens of a batch, then per variant the mean over batches; the last column is what chance alone
# gives when every expert is equally likely
set loadpath '.' 'plots'
load 'style.gp'

set title 'Imbalance against the size of the balance batch' . subtitle
set xlabel 'tokens of a balance batch'
set ylabel 'MaxVio within a batch, mean'
set logscale x 2
set format x '%.0f'
stats data using 1 every ::1 nooutput
set xrange [STATS_min/1.3:STATS_max*1.3]
set yrange [0:*]
chance = STATS_columns
plot for [i=2:chance-1] data using 1:i with linespoints title columnheader(i), \
     data using 1:chance with linespoints linestyle 101 title columnheader(chance)
