# throughput_layers.gp - time per layer: even load, what the straggler adds, communication
# data: layer, experts at even load (ms), waiting for the straggler (ms), communication (ms), the straggler's rank
set loadpath '.' 'plots'
load 'style.gp'

set title 'Time per layer' . subtitle
set xlabel 'layer (the number above a bar is the rank that is slowest most often)'
set ylabel 'ms'
set style data histograms
set style histogram rowstacked
set boxwidth 0.75
set yrange [0:*]
plot data using 2:xticlabels(1) title columnheader(2), \
     '' using 3 title columnheader(3), '' using 4 title columnheader(4), \
     '' every ::1 using ($0):($2+$3+$4):5 with labels offset 0,0.6 font ',10' notitle
