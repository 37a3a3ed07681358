# growth.gp - how the cost of a replay grows with tokens, experts, k and variants
#
# From the top folder: gnuplot -e "data='build/bench-growth.tsv'; out='growth.svg'" tests/bench/growth.gp
# Blocks of data: tokens, experts, k, variants; each with columns x, ns, relative.
width = 900
height = 560
load 'plots/style.gp'
set multiplot layout 2,2
unset key
set yrange [0:*]
set xrange [0:*]
set grid
array title_of[4] = ['tokens per layer (of a run, per 4096)', 'experts', 'k', 'variants in one sweep']
do for [i=1:4] {
    set xlabel title_of[i]
    set ylabel 'ns per token-layer'
    f(x) = a + b * x
    a = 1; b = 1
    set fit quiet
    set fit logfile '/dev/null'
    fit f(x) data index i-1 using 1:2 via a, b
    plot data index i-1 using 1:2 with points pt 7 ps 0.8, f(x) with lines dashtype 2
}
unset multiplot
