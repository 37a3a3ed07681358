# domain_balance.gp - MaxVio of each domain by itself and of all together, per layer
# data: layer, then one column per domain; the last column is all domains together
set loadpath '.' 'plots'
load 'style.gp'

set title 'Imbalance of each domain by itself' . subtitle
set xlabel 'layer'
set ylabel 'MaxVio over the tokens of the domain'
set xtics 1
stats data using 1 every ::1 nooutput
if (STATS_max - STATS_min > 20) set xtics autofreq
set xrange [STATS_min-0.3:STATS_max+0.3]
set yrange [0:*]
all = STATS_columns
plot for [i=2:all-1] data using 1:i with linespoints title columnheader(i), \
     data using 1:all with linespoints linestyle 100 title columnheader(all)
