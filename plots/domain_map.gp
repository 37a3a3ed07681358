# domain_map.gp - which experts each domain uses at one layer, relative to the domain's mean, as a heat map
# data: a matrix; first row = expert numbers, first column = domains, cells = load / mean
set loadpath '.' 'plots'
load 'style.gp'

set title 'Load per domain' . subtitle
set xlabel 'expert'
set label 1 'load / mean' at screen 0.88, screen 0.87 font ',11' textcolor rgb ink
set rmargin at screen 0.86
unset grid
unset key
set border 0
set autoscale xfix
stats data using 2 every ::1 nooutput
set yrange [STATS_records-0.5:-0.5]
plot data matrix rowheaders skip 1 using 1:2:(octave($3)) with image pixels
