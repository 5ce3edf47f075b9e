// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {Test} from "forge-std/Test.sol";
import {Vm} from "forge-std/Vm.sol";

import {
    IJobEscrow,
    JobSpec,
    JobState,
    Order,
    Result,
    SignedVoucher,
    SkipReason
} from "../src/interfaces/IJobEscrow.sol";
import {INodeRegistry} from "../src/interfaces/INodeRegistry.sol";
import {TestToken} from "./mocks/TestToken.sol";

/// @notice A voucher as `redeem` takes it, before it is packed.
struct KeyVoucher {
    address requester;
    uint128 cumulative;
    uint64 coveredNonce;
    bytes32 r;
    bytes32 vs;
}

/// @title What all tests of the contracts share: a deployment, people with keys, orders and signatures
/// @dev Digests are worked out here a second time, from the type strings, so that the tests do not trust the code they test.
abstract contract Base is Test {
    uint256 internal constant NOW = 1_700_000_000;
    uint128 internal constant MIN_STAKE = 1 ether;
    uint64 internal constant UNBONDING_PERIOD = 40 days;
    uint64 internal constant THAW_PERIOD = 1 hours;
    uint128 internal constant MAX_PRICE = 10 ether;
    uint128 internal constant PRICE = 4 ether;
    uint32 internal constant WINDOW = 1 days;
    uint32 internal constant MAX_WINDOW = 30 days;
    uint64 internal constant ARBITER_PERIOD = 7 days;
    uint128 internal constant BOND = 0.1 ether;
    uint64 internal constant MAX_DEADLINE = 365 days;
    bytes32 internal constant RESULT_HASH = keccak256("output");
    address internal constant NATIVE = address(0);

    INodeRegistry internal registry;
    IJobEscrow internal escrow;
    TestToken internal token;

    Vm.Wallet internal requester;
    Vm.Wallet internal node;
    Vm.Wallet internal otherNode;
    Vm.Wallet internal assigner;
    /// @dev Whoever sends batches; has no role in the contracts.
    address internal settler = makeAddr("settler");
    address internal owner = makeAddr("owner");

    function setUp() public virtual {
        vm.warp(NOW);
        registry = _deployRegistry();
        escrow = _deployEscrow(address(registry));
        token = new TestToken();
        requester = vm.createWallet("requester");
        node = vm.createWallet("node");
        otherNode = vm.createWallet("other node");
        assigner = vm.createWallet("assigner");
        vm.deal(requester.addr, 1000 ether);
        _register(node.addr, MIN_STAKE);
    }

    /// @dev From the artifact, so that the tests run what is deployed, whatever they are themselves compiled with.
    function _deploy(string memory name, bytes memory args) internal returns (address) {
        return vm.deployCode(string.concat(name, ".sol:", name), args);
    }

    /// @dev For the escrow that is deployed next.
    function _deployRegistry() internal returns (INodeRegistry) {
        address next = vm.computeCreateAddress(address(this), vm.getNonce(address(this)) + 1);
        return INodeRegistry(_deploy("NodeRegistry", abi.encode(MIN_STAKE, UNBONDING_PERIOD, BOND, next, owner)));
    }

    function _deployEscrow(address registry_) internal returns (IJobEscrow) {
        return IJobEscrow(_deploy("JobEscrow", abi.encode(registry_, THAW_PERIOD, owner, MAX_WINDOW, ARBITER_PERIOD)));
    }

    // ── Nodes ───────────────────────────────────────────────────────────────────────────────────────────────────────

    function _operations() internal pure returns (string[] memory operations) {
        operations = new string[](2);
        operations[0] = "encrypt";
        operations[1] = "decrypt";
    }

    function _register(address account, uint256 stake) internal {
        vm.deal(account, account.balance + stake);
        vm.prank(account);
        registry.register{value: stake}(
            keccak256(abi.encode(account)), new bytes(32), account, 4, _operations(), "https://node.example"
        );
    }

    // ── Orders ──────────────────────────────────────────────────────────────────────────────────────────────────────

    function _spec() internal pure returns (JobSpec memory) {
        return JobSpec("bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi", "encrypt", '{"to":"0x01"}');
    }

    function _specHash(JobSpec memory spec) internal pure returns (bytes32) {
        return keccak256(
            abi.encode(
                keccak256("JobSpec(string inputCID,string operation,string params)"),
                keccak256(bytes(spec.inputCID)),
                keccak256(bytes(spec.operation)),
                keccak256(bytes(spec.params))
            )
        );
    }

    /// @dev Names its node, has no window, pays in the native coin.
    function _order() internal view returns (Order memory order) {
        order.requester = requester.addr;
        order.maxPrice = MAX_PRICE;
        order.node = node.addr;
        order.specHash = _specHash(_spec());
        order.deadline = uint64(block.timestamp + 1 days);
    }

    /// @dev Names its node and has a window.
    function _windowedOrder() internal view returns (Order memory order) {
        order = _order();
        order.challengeWindow = WINDOW;
    }

    /// @dev Leaves its node to the assigner.
    function _assignedOrder() internal view returns (Order memory order) {
        order = _windowedOrder();
        order.node = address(0);
        order.assigner = assigner.addr;
    }

    function _fundToken(address account, uint256 amount) internal {
        token.mint(account, amount);
        vm.startPrank(account);
        token.approve(address(escrow), amount);
        escrow.deposit(address(token), amount);
        vm.stopPrank();
    }

    /// @dev Opens the order with money that the requester deposits for it.
    function _open(Order memory order) internal returns (bytes32 jobId) {
        if (order.token == address(token)) _fundToken(order.requester, order.maxPrice);
        vm.prank(order.requester);
        jobId = escrow.openJob{value: order.token == NATIVE ? order.maxPrice : 0}(order, _spec());
    }

    // ── Signatures ──────────────────────────────────────────────────────────────────────────────────────────────────

    function _domainSeparator(address verifyingContract, uint256 chainId) internal pure returns (bytes32) {
        return keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256("Littoral"),
                keccak256("1"),
                chainId,
                verifyingContract
            )
        );
    }

    function _digest(bytes32 structHash) internal view returns (bytes32) {
        return keccak256(abi.encodePacked(hex"1901", _domainSeparator(address(escrow), block.chainid), structHash));
    }

    function _receiptDigest(bytes32 jobId, uint128 price, bytes32 resultHash) internal view returns (bytes32) {
        bytes32 typeHash = keccak256("Receipt(bytes32 jobId,uint128 price,bytes32 resultHash)");
        return _digest(keccak256(abi.encode(typeHash, jobId, price, resultHash)));
    }

    function _assignmentDigest(bytes32 jobId, address to, uint64 expiry) internal view returns (bytes32) {
        bytes32 typeHash = keccak256("Assignment(bytes32 jobId,address node,uint64 expiry)");
        return _digest(keccak256(abi.encode(typeHash, jobId, to, expiry)));
    }

    function _sign(Vm.Wallet memory wallet, bytes32 digest) internal pure returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(wallet.privateKey, digest);
        return abi.encodePacked(r, s, v);
    }

    /// @dev A result that settles: signed by `by`, and assigned to it where the order is open.
    function _result(Order memory order, Vm.Wallet memory by, uint128 price)
        internal
        view
        returns (Result memory result)
    {
        bytes32 jobId = escrow.jobIdOf(order);
        result.order = order;
        result.node = by.addr;
        result.price = price;
        result.resultHash = RESULT_HASH;
        result.receiptSignature = _sign(by, _receiptDigest(jobId, price, RESULT_HASH));
        if (order.node == address(0)) {
            result.assignmentExpiry = uint64(block.timestamp + 1 hours);
            result.assignmentSignature = _sign(assigner, _assignmentDigest(jobId, by.addr, result.assignmentExpiry));
        }
    }

    function _result(Order memory order) internal view returns (Result memory) {
        return _result(order, node, PRICE);
    }

    // ── The signed rail ─────────────────────────────────────────────────────────────────────────────────────────────

    function _deposit(uint256 amount) internal {
        vm.prank(requester.addr);
        escrow.deposit{value: amount}(NATIVE, amount);
    }

    /// @dev Names its node, has no window, costs at most `maxPrice`.
    function _signedOrder(uint64 nonce, uint128 maxPrice) internal view returns (Order memory order) {
        order = _order();
        order.nonce = nonce;
        order.maxPrice = maxPrice;
    }

    function _signedResult(Order memory order, uint128 price) internal view returns (Result memory result) {
        result = _result(order, node, price);
        result.orderSignature = _sign(requester, escrow.jobIdOf(order));
    }

    function _settleAlone(uint64 nonce, uint128 price) internal returns (Order memory order) {
        order = _signedOrder(nonce, price);
        _submit(_signedResult(order, price));
    }

    function _voucherDigest(address from, address to, address token_, uint128 cumulative, uint64 coveredNonce)
        internal
        view
        returns (bytes32)
    {
        bytes32 typeHash = keccak256(
            "Voucher(address requester,address node,address token,uint128 cumulative,uint64 coveredNonce)"
        );
        return _digest(keccak256(abi.encode(typeHash, from, to, token_, cumulative, coveredNonce)));
    }

    /// @dev Of the usual requester for the usual node, signed by `by`.
    function _keyVoucher(Vm.Wallet memory by, uint128 cumulative, uint64 coveredNonce)
        internal
        view
        returns (KeyVoucher[] memory vouchers)
    {
        vouchers = new KeyVoucher[](1);
        bytes32 digest = _voucherDigest(requester.addr, node.addr, NATIVE, cumulative, coveredNonce);
        (bytes32 r, bytes32 vs) = vm.signCompact(by.privateKey, digest);
        vouchers[0] = KeyVoucher(requester.addr, cumulative, coveredNonce, r, vs);
    }

    function _packed(KeyVoucher[] memory vouchers) internal pure returns (bytes memory packed) {
        for (uint256 i = 0; i < vouchers.length; ++i) {
            KeyVoucher memory v = vouchers[i];
            packed = abi.encodePacked(packed, v.requester, v.cumulative, v.coveredNonce, v.r, v.vs);
        }
    }

    function _redeemBy(Vm.Wallet memory by, uint128 cumulative, uint64 coveredNonce) internal {
        bytes memory vouchers = _packed(_keyVoucher(by, cumulative, coveredNonce));
        vm.prank(node.addr);
        escrow.redeem(node.addr, NATIVE, vouchers);
    }

    function _redeemCall(address to, address token_, KeyVoucher[] memory vouchers)
        internal
        pure
        returns (bytes memory)
    {
        return abi.encodeCall(IJobEscrow.redeem, (to, token_, _packed(vouchers)));
    }

    function _redeem(uint128 cumulative, uint64 coveredNonce) internal {
        _redeemBy(requester, cumulative, coveredNonce);
    }

    function _signedVoucher(uint128 cumulative, uint64 coveredNonce, Order[] memory above)
        internal
        view
        returns (SignedVoucher[] memory vouchers)
    {
        vouchers = new SignedVoucher[](1);
        bytes32 digest = _voucherDigest(requester.addr, node.addr, NATIVE, cumulative, coveredNonce);
        vouchers[0] = SignedVoucher(requester.addr, cumulative, coveredNonce, _sign(requester, digest), above);
    }

    function _redeemAbove(uint128 cumulative, uint64 coveredNonce, Order[] memory above) internal {
        SignedVoucher[] memory vouchers = _signedVoucher(cumulative, coveredNonce, above);
        vm.prank(node.addr);
        escrow.redeemSigned(node.addr, NATIVE, vouchers);
    }

    function _redeemSkipped(Vm.Wallet memory by, uint128 cumulative, uint64 coveredNonce, SkipReason reason) internal {
        vm.expectEmit(address(escrow));
        emit IJobEscrow.VoucherSkipped(requester.addr, node.addr, NATIVE, cumulative, reason);
        vm.record();
        _redeemBy(by, cumulative, coveredNonce);
        _assertNothingWritten();
    }

    function _assertChannel(uint256 claimed, uint64 coveredNonce, uint256 reserved) internal view {
        (uint256 actualClaimed, uint64 actualNonce) = escrow.channel(requester.addr, node.addr, NATIVE);
        (uint256 actualReserved,,) = escrow.reservation(requester.addr, node.addr, NATIVE);
        assertEq(actualClaimed, claimed, "claimed");
        assertEq(actualNonce, coveredNonce, "coveredNonce");
        assertEq(actualReserved, reserved, "reserved");
    }

    // ── Batches ─────────────────────────────────────────────────────────────────────────────────────────────────────

    function _batch(Result memory result) internal pure returns (Result[] memory results) {
        results = new Result[](1);
        results[0] = result;
    }

    function _batch(Order memory order) internal pure returns (Order[] memory orders) {
        orders = new Order[](1);
        orders[0] = order;
    }

    function _submit(Result memory result) internal {
        vm.prank(settler);
        escrow.submitResults(_batch(result));
    }

    function _finalize(Order memory order) internal {
        vm.prank(settler);
        escrow.finalize(_batch(order));
    }

    function _refund(Order memory order) internal {
        vm.prank(settler);
        escrow.refundExpired(_batch(order));
    }

    function _expectSkip(Order memory order, SkipReason reason) internal {
        bytes32 jobId = escrow.jobIdOf(order);
        vm.expectEmit(address(escrow));
        emit IJobEscrow.Skipped(jobId, reason);
        vm.record();
    }

    /// @dev After `_expectSkip` and the call: not one slot was written.
    function _assertNothingWritten() internal {
        (, bytes32[] memory writes) = vm.accesses(address(escrow));
        assertEq(writes.length, 0, "a skipped item wrote to storage");
    }

    function _submitSkipped(Result memory result, SkipReason reason) internal {
        _expectSkip(result.order, reason);
        _submit(result);
        _assertNothingWritten();
    }

    function _finalizeSkipped(Order memory order, SkipReason reason) internal {
        _expectSkip(order, reason);
        _finalize(order);
        _assertNothingWritten();
    }

    function _refundSkipped(Order memory order, SkipReason reason) internal {
        _expectSkip(order, reason);
        _refund(order);
        _assertNothingWritten();
    }

    // ── Reading ─────────────────────────────────────────────────────────────────────────────────────────────────────

    function _free(address account, address token_) internal view returns (uint256 free) {
        (free,,) = escrow.account(account, token_);
    }

    function _assertAccount(address account, address token_, uint256 free, uint256 thawing, uint256 thawEnd)
        internal
        view
    {
        (uint128 actualFree, uint128 actualThawing, uint64 actualEnd) = escrow.account(account, token_);
        assertEq(actualFree, free, "free");
        assertEq(actualThawing, thawing, "thawing");
        assertEq(actualEnd, thawEnd, "thawEnd");
    }

    function _assertJob(bytes32 jobId, JobState state, uint256 locked, uint256 finalizeAt, address waiting)
        internal
        view
    {
        (JobState actualState, uint128 actualLocked, uint64 actualFinalizeAt, address actualNode) = escrow.job(jobId);
        assertEq(uint256(actualState), uint256(state), "state");
        assertEq(actualLocked, locked, "locked");
        assertEq(actualFinalizeAt, finalizeAt, "finalizeAt");
        assertEq(actualNode, waiting, "node");
    }
}
