/* test_drift.c - distances between loads by hand, and how MaxVio follows a change of text */
#include <math.h>

#include "analysis/drift.h"
#include "tests/test.h"

static void distances_match_hand_computation(void **state) {
    static const int64_t a[] = {6, 2, 0}, b[] = {1, 1, 2}, same[] = {12, 4, 0}, none[] = {0, 0, 0};
    (void)state;
    /* p = 3/4 1/4 0, q = 1/4 1/4 1/2: (1/2 + 0 + 1/2) / 2 */
    test_near(drift_variation(a, b, 3), 0.5, 1e-15);
    test_near(drift_variation(a, same, 3), 0, 1e-15);
    /* m = 1/2 1/4 1/4: H(m) = 1.5, H(p) = 0.811278, H(q) = 1.5 */
    test_near(drift_divergence(a, b, 3), 1.5 - (0.8112781244591328 + 1.5) / 2, 1e-12);
    test_near(drift_divergence(a, same, 3), 0, 1e-12);
    static const int64_t left[] = {5, 0}, right[] = {0, 7};
    test_near(drift_variation(left, right, 2), 1, 1e-15);
    test_near(drift_divergence(left, right, 2), 1, 1e-15);
    assert_true(isnan(drift_variation(a, none, 3)) && isnan(drift_divergence(none, b, 3)));
}

static void stretches_tell_what_a_change_does(void **state) {
    static const int kind[] = {4, 4, 4, 7, 7, 7, 7, 7, 7, 7, 7, 4, 4};
    static const double maxvio[] = {1, 1, 1, 5, 4, 3, 2, 1.0, 1.1, 1.0, 1.1, 3, 2};
    struct drift_stretch s[3];
    (void)state;
    assert_int_equal(drift_stretches(kind, maxvio, 13, s, 3), 3);
    assert_int_equal(drift_stretches(kind, maxvio, 13, s, 1), 3);
    assert_true(isnan(s[0].before) && s[0].first == 0 && s[0].count == 3);
    assert_true(s[1].first == 3 && s[1].count == 8);
    test_near(s[1].before, 1, 0);
    test_near(s[1].start, 5, 0);
    test_near(s[1].level, 1.05, 1e-12);
    test_near(s[1].settling, 4, 0); /* within 0.395 above 1.05 from the fifth on */
    assert_true(isnan(s[2].settling) && s[2].count == 2);
    test_near(s[2].before, 1.1, 0);
}

static void a_flat_stretch_has_nothing_to_settle(void **state) {
    static const int kind[8] = {0};
    static const double maxvio[] = {2, 2.1, 1.9, 2, 2.1, 2, 1.9, 2};
    struct drift_stretch s;
    (void)state;
    assert_int_equal(drift_stretches(kind, maxvio, 8, &s, 1), 1);
    assert_true(isnan(s.settling));
    test_near(s.level, 2, 1e-12);
}

int test_drift(void);
int test_drift(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(distances_match_hand_computation),
        cmocka_unit_test(stretches_tell_what_a_change_does),
        cmocka_unit_test(a_flat_stretch_has_nothing_to_settle),
    };
    return cmocka_run_group_tests_name("drift", tests, NULL, NULL);
}
