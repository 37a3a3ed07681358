# models.gp - sorted expert load of several models, each under its own gate
# data: share of the experts (0..1), then per model its load / mean (mean over layers)
set loadpath '.' 'plots'
load 'style.gp'

set title 'Sorted expert load of the models' . subtitle
set xlabel 'share of the experts, from the busiest to the idlest'
set ylabel 'load / mean'
set xrange [0:1]
set yrange [0:*]
set arrow 1 from graph 0, first 1 to graph 1, first 1 nohead linecolor rgb '#888888' dashtype (2,3) back
plot for [i=2:*] data using 1:i with lines title columnheader(i)
