# Compile flags, library look-up and the helper every folder declares its tests with.

find_package(Threads REQUIRED)
find_package(PkgConfig REQUIRED)
find_package(fmt REQUIRED)
find_package(nlohmann_json REQUIRED)
pkg_check_modules(SYSTEMD REQUIRED IMPORTED_TARGET libsystemd)
pkg_check_modules(LIBVIRT REQUIRED IMPORTED_TARGET libvirt)
pkg_check_modules(LIBXML2 REQUIRED IMPORTED_TARGET libxml-2.0)
pkg_check_modules(SQLITE3 REQUIRED IMPORTED_TARGET sqlite3)
pkg_check_modules(CRYPTO REQUIRED IMPORTED_TARGET libcrypto)
find_library(MUNGE_LIBRARY munge REQUIRED)
find_library(SLURM_LIBRARY slurm REQUIRED)

add_library(symvirt_flags INTERFACE)
target_compile_options(symvirt_flags INTERFACE -Wall -Wextra -Wpedantic -Wshadow -Wno-missing-field-initializers
  -fstack-protector-strong $<$<NOT:$<CONFIG:Debug>>:-D_FORTIFY_SOURCE=2>)
target_include_directories(symvirt_flags INTERFACE ${PROJECT_SOURCE_DIR} ${PROJECT_BINARY_DIR})

# What daemons, tools and tests share. The objects that are loaded into foreign processes (the SPANK plugin and
# libsymvirt_hooks.so) do not take the sanitizers: their host process is not built with them.
add_library(symvirt_flags_daemon INTERFACE)
target_link_libraries(symvirt_flags_daemon INTERFACE symvirt_flags Threads::Threads)
if(SYMVIRT_SANITIZE)
  target_compile_options(symvirt_flags_daemon INTERFACE -fsanitize=${SYMVIRT_SANITIZE} -fno-omit-frame-pointer)
  target_link_options(symvirt_flags_daemon INTERFACE -fsanitize=${SYMVIRT_SANITIZE})
endif()

# What the builds with sanitizers and fuzzers make of all this: see tests/run.
option(SYMVIRT_FUZZ "Build the libFuzzer targets (clang only)" OFF)
if(SYMVIRT_TESTS)
  add_custom_target(unit-tests)
  add_custom_target(thread-tests)
endif()
if(SYMVIRT_FUZZ)
  add_custom_target(fuzzers)
endif()

# symvirt_test(NAME name [THREADS] SOURCES a_test.cc ... LIBS lib ...): one GoogleTest executable, known to ctest by case. THREADS: what
# it tests has several, so ThreadSanitizer is to see it.
function(symvirt_test)
  if(NOT SYMVIRT_TESTS)
    return()
  endif()
  cmake_parse_arguments(T "THREADS" "NAME" "SOURCES;LIBS;DEFS" ${ARGN})
  find_package(GTest REQUIRED)
  include(GoogleTest)
  add_executable(${T_NAME} ${T_SOURCES})
  target_link_libraries(${T_NAME} PRIVATE symvirt_flags_daemon ${T_LIBS} GTest::gmock GTest::gtest_main)
  target_compile_definitions(${T_NAME} PRIVATE ${T_DEFS})
  add_dependencies(unit-tests ${T_NAME})
  set(label unit)
  if(T_THREADS)
    add_dependencies(thread-tests ${T_NAME})
    set(label unit-threads)
  endif()
  gtest_discover_tests(${T_NAME} DISCOVERY_TIMEOUT 60 PROPERTIES TIMEOUT 300 LABELS ${label})
endfunction()
