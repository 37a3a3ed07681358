# domain_drift.gp - MaxVio of each balance batch while the text changes domain, one line per rate
# data: block 0: batch, then per variant MaxVio within the batch (mean over layers); block 1: the first
# batch of each stretch of one domain, and the domain
set loadpath '.' 'plots'
load 'style.gp'

set title 'Imbalance as the text changes domain' . subtitle
set xlabel 'balance batch'
set ylabel 'MaxVio within the batch'
set autoscale xfix
set yrange [0:*]
stats data index 0 using 2 nooutput
plot data index 1 using 1:(1.5*STATS_max) with impulses linecolor rgb '#bbbbbb' linewidth 1 dashtype 1 notitle, \
     data index 1 using 1:(1.45*STATS_max):2 with labels left offset 0.4,0 font ',10' notitle, \
     for [i=2:*] data index 0 using 1:i with lines linetype i-1 title columnheader(i)
