# load_curves.gp - load of the experts from the busiest to the idlest, one line per variant
# data: rank of the expert, then per variant its load / mean (mean over layers at that rank)
set loadpath '.' 'plots'
load 'style.gp'

set title 'Sorted expert load' . subtitle
set xlabel 'experts, from the busiest to the idlest'
set ylabel 'load / mean'
set autoscale xfix
set yrange [0:*]
set arrow 1 from graph 0, first 1 to graph 1, first 1 nohead linecolor rgb '#888888' dashtype (2,3) back
plot for [i=2:*] data using 1:i with lines title columnheader(i)
