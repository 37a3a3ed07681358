# ranks.gp - imbalance of ranks, and the bound on efficiency that it sets, against their number
# data: two blocks of the same form: ranks, then one column per variant; first max / mean - 1 of the load
# of ranks over all tokens, then the mean over batches of mean / max
set loadpath '.' 'plots'
load 'style.gp'

set title 'Imbalance of ranks' . subtitle
stats data index 0 using 1 every ::1 nooutput
set logscale x 2
set format x '%.0f'
set xrange [STATS_min/1.2:STATS_max*1.2]
set xlabel 'ranks (experts in contiguous blocks)'
bottom = (92 + 17.0*(STATS_columns-1)) / height # room for the legend below both panels
set multiplot layout 1,2 margins 0.11,0.98,bottom,0.9 spacing 0.13
set ylabel 'rank MaxVio over all tokens'
set yrange [0:*]
set key at screen 0.5, screen 0.02 bottom center vertical maxcols 1
plot for [i=2:*] data index 0 using 1:i with linespoints title columnheader(i)
unset key
set title 'Bound on speed'
set ylabel 'efficiency (mean / max of a batch)'
set yrange [0:1]
plot for [i=2:*] data index 1 using 1:i with linespoints title columnheader(i)
unset multiplot
