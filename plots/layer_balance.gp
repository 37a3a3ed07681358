# layer_balance.gp - MaxVio of each layer, one line per variant
# data: layer, then per variant max load / mean load - 1 over all tokens
set loadpath '.' 'plots'
load 'style.gp'

set title 'Imbalance per layer' . subtitle
set xlabel 'layer'
set ylabel 'MaxVio over all tokens'
set xtics 1
stats data using 1 every ::1 nooutput
if (STATS_max - STATS_min > 20) set xtics autofreq
set xrange [STATS_min-0.3:STATS_max+0.3]
set yrange [0:*]
plot for [i=2:*] data using 1:i with linespoints title columnheader(i)
