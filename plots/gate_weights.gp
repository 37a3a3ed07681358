# gate_weights.gp - gate weight at each place of selection, one line per normalisation
# data: place (1 = chosen first), then per variant two columns: mean and standard deviation over tokens
set loadpath '.' 'plots'
load 'style.gp'

set title 'Gate weights under each normalisation' . subtitle
set xlabel 'place in the selection (1 = the highest score)'
set ylabel 'gate weight'
set xtics 1
stats data using 1 every ::1 nooutput
if (STATS_max > 20) set xtics autofreq
set xrange [0.5:STATS_max+0.5]
set yrange [0:*]
set bars 0.6
set key noautotitle
plot for [i=2:*:2] data using ($1+(i/2-2)*0.06):i:i+1 with yerrorbars linetype i/2 dashtype 1 linewidth 1, \
     for [i=2:*:2] data using ($1+(i/2-2)*0.06):i with linespoints linetype i/2 title columnheader(i)
