/* scenes.h - the benchmark scenes, one line each */
X(kernels)
