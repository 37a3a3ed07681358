# style.gp - what all figures share: terminal, sizes, colours, data file conventions
#
# Loaded first by every template. A template runs by hand from the top folder or beside its data:
#   gnuplot -e "data='x.tsv'; out='x.svg'" plots/x.gp
# Optional: format='svg'|'png'|'pdf', width=, height= (points), subtitle='...'.
# Data are tab-separated blocks with one header line each; an empty cell is a missing value.

if (!exists("format")) format = 'svg'
if (!exists("width")) width = 760
if (!exists("height")) height = 440
if (!exists("subtitle")) subtitle = ''

if (format eq 'png') {
    set terminal pngcairo noenhanced size 2*width,2*height font 'sans-serif,11' fontscale 1.8 linewidth 2 pointscale 2
} else { if (format eq 'pdf') {
    set terminal pdfcairo noenhanced size width/100.0,height/100.0 font 'sans-serif,10' linewidth 1.6 pointscale 0.8
} else {
    set terminal svg noenhanced size width,height font 'sans-serif,13' linewidth 1.5 background '#ffffff' dynamic
} }
set output out
set encoding utf8

set datafile separator tab
set datafile commentschars ''
set datafile missing ''

# What a line is compared with: everything together, or chance alone.
set style line 100 linecolor rgb '#000000' linewidth 2.6 dashtype 1 pointtype 4 pointsize 0.5
set style line 101 linecolor rgb '#888888' linewidth 2 dashtype (2,3) pointtype 1 pointsize 0.5

# Okabe and Ito's colours without the yellow (too faint on white); each line also has its own dash and
# point, so that no reading depends on colour.
set linetype  1 linecolor rgb '#0072B2' linewidth 1.6 dashtype 1       pointtype 7  pointsize 0.5
set linetype  2 linecolor rgb '#D55E00' linewidth 1.6 dashtype (8,3)   pointtype 5  pointsize 0.5
set linetype  3 linecolor rgb '#009E73' linewidth 1.6 dashtype 1       pointtype 9  pointsize 0.6
set linetype  4 linecolor rgb '#CC79A7' linewidth 1.6 dashtype (3,3)   pointtype 11 pointsize 0.6
set linetype  5 linecolor rgb '#E69F00' linewidth 1.6 dashtype 1       pointtype 13 pointsize 0.6
set linetype  6 linecolor rgb '#56B4E9' linewidth 1.6 dashtype (8,3)   pointtype 6  pointsize 0.5
set linetype  7 linecolor rgb '#000000' linewidth 1.6 dashtype 1       pointtype 4  pointsize 0.5
set linetype  8 linecolor rgb '#882255' linewidth 1.6 dashtype (3,3)   pointtype 8  pointsize 0.6
set linetype  9 linecolor rgb '#666666' linewidth 1.6 dashtype (8,3)   pointtype 10 pointsize 0.6
set linetype cycle 9

ink = '#222222'
faint = '#dddddd'
set border 3 linecolor rgb '#888888' linewidth 0.8
set tics nomirror out scale 0.5 textcolor rgb ink
set grid linecolor rgb faint linewidth 0.6 dashtype 1
set key outside bottom center horizontal Left reverse samplen 2.5 spacing 1.15 height 0.7 font ',11' textcolor rgb ink
set title font ',14' textcolor rgb ink offset 0,-0.4
set xlabel textcolor rgb ink offset 0,0.4
set ylabel textcolor rgb ink
set style fill solid 1.0 noborder

# Load relative to the mean: blue = idle, white = balanced, orange = overloaded; log2 scale, +-3 octaves.
octave(x) = x <= 0.125 ? -3 : (x >= 8 ? 3 : log(x) / log(2))
set palette defined (-3 '#08457e', -1.5 '#5aa5d6', 0 '#f7f7f7', 1.5 '#ee9a4d', 3 '#9c3a00')
set colorbox user origin screen 0.88, screen 0.2 size screen 0.025, screen 0.62
set cbrange [-3:3]
set cbtics ('<= 1/8' -3, '1/4' -2, '1/2' -1, 'mean' 0, '2x' 1, '4x' 2, '>= 8x' 3)
