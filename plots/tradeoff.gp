# tradeoff.gp - what balance costs: routing quality kept against imbalance, one point per variant
# data: one block per kind of gate; header: MaxVio, mass retained, agreement, label, then the kind's name;
# the label is empty where it would only clutter
set loadpath '.' 'plots'
load 'style.gp'

set title 'Gate mass kept' . subtitle
stats data using 1 nooutput
blocks = STATS_blocks
stats data using 2 nooutput
mass = STATS_min
stats data using 3 nooutput
choices = STATS_min
set xlabel 'MaxVio within a batch, mean'
set xrange [0:*]
set xtics autofreq
lowest(x) = x > 0.98 ? 0.98 : x - 0.05 * (1 - x)
set offsets graph 0, graph 0.06, graph 0, graph 0.06
bottom = (92 + 17.0*(blocks)) / height # room for the legend below both panels
set multiplot layout 1,2 margins 0.11,0.98,bottom,0.9 spacing 0.13
set yrange [lowest(mass):1]
set ylabel 'mass retained' offset 0.7
set key at screen 0.5, screen 0.02 bottom center vertical maxcols 1
plot for [i=0:blocks-1] data index i using 1:2 with points linetype i+1 pointsize 0.9 title columnheader(5), \
     for [i=0:blocks-1] data index i using 1:2:4 with labels left offset 0.6,0.3 font ',10' notitle
unset key
set title 'Choices kept'
set yrange [lowest(choices):1]
set ylabel 'agreement with the native gate'
plot for [i=0:blocks-1] data index i using 1:3 with points linetype i+1 pointsize 0.9 title columnheader(5), \
     for [i=0:blocks-1] data index i using 1:3:4 with labels left offset 0.6,0.3 font ',10' notitle
unset multiplot
