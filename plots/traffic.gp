# traffic.gp - what each rank and each node sends to each other in a batch, relative to the mean, as heat maps
# data: a matrix of ranks: first row = receivers, first column = senders, cells = copies / mean; then a list of nodes:
# sender, receiver, copies / mean
set loadpath '.' 'plots'
load 'style.gp'

unset grid
unset key
set border 0
set autoscale xfix
set label 1 'copies / mean' at screen 0.87, screen 0.87 font ',11' textcolor rgb ink
stats data index 1 using 1 every ::1 nooutput
nodes = STATS_max + 1
stats data index 0 using 2 every ::1 nooutput
ranks = STATS_records
set multiplot
set title 'Traffic between ranks' . subtitle
set xlabel 'to rank'
set ylabel 'from rank'
set lmargin at screen 0.08
set rmargin at screen (nodes > 1 ? 0.5 : 0.85)
set yrange [ranks-0.5:-0.5]
plot data index 0 matrix rowheaders skip 1 using 1:2:(octave($3)) with image pixels
if (nodes > 1) {
    unset label 1
    unset colorbox
    set title 'between nodes'
    set xlabel 'to node'
    set ylabel 'from node'
    set lmargin at screen 0.6
    set rmargin at screen 0.85
    set xrange [-0.5:nodes-0.5]
    set yrange [nodes-0.5:-0.5]
    set xtics 1
    set ytics autofreq
    set ytics 1
    plot data index 1 every ::1 using 2:1:(octave($3)) with image pixels
}
unset multiplot
