"""The environment check: the pair that crashes is recognised, this environment is sound."""

from tvmq.doctor import check_ffi, examine


def test_the_broken_pair_is_an_error_with_the_remedy():
    for version in ("0.1.15", "0.1.15.post1", "0.2.0"):
        check = check_ffi(version)
        assert check.state == "error"
        assert "pip install 'apache-tvm-ffi<0.1.15'" in check.advice


def test_the_working_pair_is_fine():
    for version in ("0.1.14", "0.1.14.post1"):
        assert check_ffi(version).state == "ok"


def test_this_environment_can_build():
    checks = examine()
    assert [check for check in checks if check.state == "error"] == []
    assert {"python", "apache-tvm-ffi", "C++ compiler", "LLVM in TVM", "processor"} <= {
        check.name for check in checks
    }
