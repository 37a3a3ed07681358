/* scenes.h - the benchmark scenes, one X(name) each: void bench_NAME(void) in bench_NAME.c */
#ifndef TESTS_BENCH_SCENES_H
#define TESTS_BENCH_SCENES_H

#define BENCH_SCENES(X)                                                                            \
    X(kernels)                                                                                     \
    X(engine)                                                                                      \
    X(llama)                                                                                       \
    X(replay)                                                                                      \
    X(gate)                                                                                        \
    X(growth)                                                                                      \
    X(store)                                                                                       \
    X(import)                                                                                      \
    X(cluster)

#endif
