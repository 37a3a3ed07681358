# throughput_ranks.gp - tokens per second against the number of ranks
# data: one or two blocks (prefill, decode): ranks, then one column per gate and placement
set loadpath '.' 'plots'
load 'style.gp'

stats data using 1 every ::1 nooutput
blocks = STATS_blocks
stats data index 0 using 1 every ::1 nooutput
set logscale xy 2
set format x '%.0f'
set format y '%.0s%c'
set xrange [STATS_min/1.2:STATS_max*1.2]
set xlabel 'ranks'
bottom = (92 + 17.0*(STATS_columns-1)) / height # room for the legend below both panels
set multiplot layout 1,blocks margins 0.11,0.98,bottom,0.9 spacing 0.13
set title 'Prefill' . subtitle
set ylabel 'tokens/s of the group'
set key at screen 0.5, screen 0.02 bottom center vertical maxcols 1
plot for [i=2:*] data index 0 using 1:i with linespoints title columnheader(i)
if (blocks > 1) {
    unset key
    set title 'Decode'
    plot for [i=2:*] data index 1 using 1:i with linespoints title columnheader(i)
}
unset multiplot
